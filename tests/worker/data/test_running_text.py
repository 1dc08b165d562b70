"""Texts of files of any size become the same sequences as if they were held in memory, without being held."""

from __future__ import annotations

import gc
import gzip
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from app.recipe.data.sources import CsvData, Data, HfData, JsonlData, ParquetData
from app.recipe.job import JobSpec
from tests.worker.data.loading import load_task
from tests.worker.data.test_documents import TEMPLATE, talking
from worker.data import running_text
from worker.data.batches import Batch
from worker.data.formats import read_pieces
from worker.data.formats.columns import RUN_CHARACTERS, Chats, in_runs
from worker.data.holdout import hold_out_any
from worker.data.running_text import PackingDir, TextFile, halves_of, map_files, pack_file
from worker.data.task_data import TaskData
from worker.data.tokens import TextTokenizer, train_writer
from worker.errors import UserError
from worker.tensors import IGNORED

LENGTH, ROWS = 8, 2600
TEXTS = [f"row {row}: the cat, number {row % 7}\nsat" for row in range(ROWS)]
"""More than are read at a time."""
BPE = {"kind": "bpe", "vocabulary": 520, "lowercase": False}


def job_of(**data: Any) -> JobSpec:
    document: dict[str, Any] = {
        "task": "causal-lm",
        "data": {"train": "t", "input_columns": ["text"], "max_length": LENGTH, "tokenizer": BPE, **data},
        "student": {"architecture": "transformers", "config": {"model_type": "gpt2"}},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    return JobSpec.model_validate(document)


def jsonl(path: Path, texts: list[Any] = TEXTS, *, packed: bool = False) -> Path:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines) if packed else lines)
    return path


def csv(path: Path) -> Path:
    rows = "".join('"' + text.replace('"', '""') + '"\n' for text in TEXTS)
    path.write_text("text\n" + rows, encoding="utf-8")
    return path


def parquet(path: Path) -> Path:
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=700)
    return path


def data_set(path: Path) -> Path:
    """Two shards, in the other order than their names, in a tar."""
    with tarfile.open(path, "w") as archive:
        for name, texts in (("b.arrow", TEXTS[:1500]), ("a.arrow", TEXTS[1500:])):
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])) as stream:
                stream.write_table(pa.table({"text": texts}), max_chunksize=1000)
            add(archive, name, sink.getvalue())
        add(
            archive,
            "state.json",
            json.dumps({"_data_files": [{"filename": n} for n in ("b.arrow", "a.arrow")]}).encode(),
        )
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


FORMATS: dict[str, tuple[type[Data], Callable[[Path], Path]]] = {
    "jsonl": (JsonlData, jsonl),
    "csv": (CsvData, csv),
    "parquet": (ParquetData, parquet),
    "hf-dataset": (HfData, data_set),
}


@pytest.fixture(scope="module")
def reader() -> TextTokenizer:
    return train_writer(job_of(format="jsonl").data.tokenizer, TEXTS)


def in_memory(texts: list[str], reader: TextTokenizer) -> tuple[Tensor, Tensor]:
    """The whole text at once, in the plainest form."""
    assert reader.end is not None
    rows = [([*reader.begin, *e.ids, reader.end], len(reader.begin)) for e in reader.encode_whole(texts)]
    ids = np.array([i for row, _ in rows for i in row])
    counted = np.array([place >= begin for row, begin in rows for place in range(len(row))])
    targets = np.where(counted[1:], ids[1:], IGNORED)
    missing = -(len(ids) - 1) % LENGTH
    tokens = np.append(ids[:-1], [reader.end] * missing).reshape(-1, LENGTH)
    return torch.from_numpy(tokens), torch.from_numpy(np.append(targets, [IGNORED] * missing).reshape(-1, LENGTH))


def whole(split: Batch) -> tuple[Tensor, Tensor]:
    found = split.between(0, len(split))
    return next(iter(found.inputs.values())), found.targets


def loaded(job: JobSpec, folder: Path, **files: Path) -> TaskData:
    return load_task(job, files, {}, seed=5, packing=PackingDir(folder / "packed"))


@pytest.mark.parametrize("name", FORMATS)
def test_held_out_or_not_sequences_are_those_of_all_texts_in_memory(
    name: str, tmp_path: Path, reader: TextTokenizer
) -> None:
    found = loaded(job_of(format=name), tmp_path, t=FORMATS[name][1](tmp_path / "file"))
    assert found.readers is not None
    assert found.readers.student.digest == reader.digest  # made of the texts piece by piece
    for half, split in zip(hold_out_any(ROWS, ROWS // 5, 5), (found.train, found.eval), strict=True):
        expected = in_memory([TEXTS[i] for i in half.tolist()], reader)
        assert all(torch.equal(one, other) for one, other in zip(whole(split), expected, strict=True))
    assert not (tmp_path / "packed").exists()


def test_a_file_to_evaluate_on_is_packed_for_itself(tmp_path: Path, reader: TextTokenizer) -> None:
    files = {"t": jsonl(tmp_path / "t", packed=True), "e": jsonl(tmp_path / "e", TEXTS[:9])}
    found = loaded(job_of(format="jsonl", eval="e"), tmp_path, **files)
    for texts, split in ((TEXTS, found.train), (TEXTS[:9], found.eval)):
        assert all(torch.equal(*pair) for pair in zip(whole(split), in_memory(texts, reader), strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_texts_are_read_some_at_a_time(name: str, tmp_path: Path) -> None:
    kind, write = FORMATS[name]
    path, data = write(tmp_path / "file"), kind(format=name, train="t", input_columns=["text"])
    pieces = list(read_pieces(path, data, "data.train", tmp_path))
    assert len(pieces) > 2
    assert [text for piece in pieces for text in piece[0]] == TEXTS


def test_long_texts_come_in_shorter_runs() -> None:
    runs = list(in_runs(["a" * (RUN_CHARACTERS // 2)] * 5, len))
    assert [len(run) for run in runs] == [2, 2, 1]


def peak_of(rows: int, folder: Path, reader: TextTokenizer) -> int:
    """Bytes of Python's and NumPy's at their peak, while a file of so many texts is counted and packed."""
    folder.mkdir()
    with (folder / "file").open("w") as out:
        for row in range(rows):
            out.write(json.dumps({"text": TEXTS[row % ROWS] * 20}) + "\n")
    data = job_of(format="jsonl").data
    place = PackingDir(folder)
    file = TextFile(folder / "file", data, "data.train", place)
    gc.collect()
    tracemalloc.start()
    try:
        halves = halves_of(file.count(), rows // 10, seed=0)
        pack_file(file, reader, LENGTH, halves, [folder / "train", folder / "eval"])
        map_files([folder / "train", folder / "eval"], place, reader, LENGTH)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path: Path, reader: TextTokenizer) -> None:
    """But for eight bytes a sequence and a few a text, far less than the text itself."""
    small, large = (peak_of(rows, tmp_path / str(rows), reader) for rows in (1200, 4800))
    text = 3600 * len(TEXTS[0]) * 20
    assert large - small < text / 4
    assert large < 1.3 * small


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        ([*TEXTS[:1500], 7], "row 1500"),
        ([*TEXTS[:1500], None], "row 1500"),
        ([], "no rows"),
        ([7], "row 0"),
    ],
)
def test_an_invalid_text_is_refused_with_its_row(tmp_path: Path, texts: list[Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        loaded(job_of(format="jsonl"), tmp_path, t=jsonl(tmp_path / "file", texts))
    assert (caught.value.code, caught.value.param) == ("invalid_data", "data.train")
    assert not (tmp_path / "packed").exists()


def test_chats_are_counted_across_pieces(tmp_path: Path, reader: TextTokenizer) -> None:
    once = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "sat"}]
    wrong = [{"role": "user", "content": "raise"}]
    path = jsonl(tmp_path / "file", [*[once] * 1100, wrong])
    template = TEMPLATE.replace("<s>{{", "{% if message.content == 'raise' %}{{ 1 / 0 }}{% endif %}<s>{{", 1)
    file = TextFile(path, job_of(format="jsonl").data, "data.train", PackingDir(tmp_path))
    assert all(isinstance(piece, Chats) for piece in file.pieces(""))
    with pytest.raises(UserError, match=r"row 1100 of data\.train"):
        pack_file(file, talking(reader, template), LENGTH, halves_of(1101, 0, 0), [tmp_path / "train"])


def test_chats_and_texts_in_one_column_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "file", [TEXTS[0], [{"role": "user", "content": "a"}]])
    with pytest.raises(UserError, match="row 1"):
        loaded(job_of(format="jsonl"), tmp_path, t=path)


def test_slow_reading_reports_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_text, "SECONDS_BETWEEN_REPORTS", 0.0)
    said: list[str] = []
    place = replace(PackingDir(tmp_path), report=said.append)
    assert TextFile(jsonl(tmp_path / "file"), job_of(format="jsonl").data, "data.train", place).count() == ROWS
    assert said[-1] == "reading data.train: 2,600 texts so far"


def test_another_process_maps_what_the_first_has_packed(tmp_path: Path) -> None:
    path, folder = jsonl(tmp_path / "file"), tmp_path / "packed"
    met: list[int] = []
    theirs: list[TaskData] = []

    def first_is_done() -> None:
        """The other one comes to its first meeting, and is through before the first process goes on."""
        met.append(1)
        if len(met) == 1:
            other = PackingDir(folder, packs=False)
            theirs.append(load_task(job_of(format="jsonl"), {"t": path}, {}, seed=5, packing=other))

    ours = load_task(job_of(format="jsonl"), {"t": path}, {}, 5, PackingDir(folder, barrier=first_is_done))
    assert len(met) == 2
    assert not folder.exists()
    for one, other in ((ours.train, theirs[0].train), (ours.eval, theirs[0].eval)):
        assert all(torch.equal(*pair) for pair in zip(whole(one), whole(other), strict=True))


def generated() -> Iterator[str]:
    yield from TEXTS


def test_a_tokenizer_is_made_of_texts_that_are_seen_once(reader: TextTokenizer) -> None:
    assert train_writer(job_of(format="jsonl").data.tokenizer, generated()).digest == reader.digest
