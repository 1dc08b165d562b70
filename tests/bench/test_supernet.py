"""The comparison of a searched student runs on a teacher and pairs of texts from elsewhere."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bench import supernet
from tests.kinds import pairs, write_encoder


def write_pairs(path: Path) -> Path:
    lines = ["sentence1\tsentence2\tscore", *(f"{one}\t{other}\t{score}" for one, other, score in pairs())]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.mark.long
def test_searched_drawn_and_shrunk_students_get_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernet, "SIMILAR", 1.0)  # sizes of so small a teacher differ by large shares
    write_encoder(tmp_path / "teacher", hidden_size=96, num_attention_heads=6, intermediate_size=96)
    texts = str(write_pairs(tmp_path / "pairs.tsv.gz"))
    given = ["--teacher", str(tmp_path / "teacher"), "--train", texts, "--eval", texts]
    supernet.main([*given, "--steps", "2", "--seeds", "2", "--most", "1000000"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| teacher", "| searched", "| drawn at random", "| shrunk"]
    assert rows[0][2] == "0.000 ± 0.000"
    assert all(float(row[2].split()[0]) > 0.0 for row in rows[1:])
    assert rows[1][1] == rows[3][1]  # equal sizes
