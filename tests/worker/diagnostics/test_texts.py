"""Diagnostics of classifiers of texts, whose attention is computed by a fused kernel elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from app.recipe.job import JobSpec
from tests.worker.training.builders import play
from worker.protocol import Assignment, Failed, Finished

BERT: dict[str, Any] = {
    "architecture": "transformers",
    "config": {
        **{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
        "intermediate_size": 16,
    },
}
ASKED: list[dict[str, Any]] = [
    {"kind": "mahalanobis", "data": "other", "attacks": []},
    {"kind": "hessian", "samples": 10, "lanczos_steps": 3, "steps": 3},
    {"kind": "loss-landscape", "samples": 10, "points": 3},
    {"kind": "linear-evaluation", "draws": 1},
    {"kind": "widedeep"},
]


def assignment(folder: Path, other: str = "text\n" + "a stone in a river\n" * 12) -> Assignment:
    words = ("good", "fine", "bad", "poor")
    lines = [f"{words[number % 4]} film number {number},{number % 4 // 2}" for number in range(60)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (folder / "other.csv").write_text(other)
    document = {
        "task": "text-classification",
        "data": {
            **{"format": "csv", "train": "texts", "input_columns": ["text"], "label_columns": ["label"]},
            **{"eval_fraction": 0.4, "max_length": 12},
        },
        "student": BERT,
        "recipe": {"losses": [{"kind": "cross-entropy"}], "epochs": 1},
        "evaluation": {"diagnostics": ASKED},
        "export": ["safetensors"],
        "seed": 3,
    }
    return Assignment(spec=JobSpec.model_validate(document), inputs={"texts": "texts.csv", "other": "other.csv"})


def test_every_kind_has_figures(tmp_path: Path) -> None:
    word = play(assignment(tmp_path), tmp_path).word
    assert isinstance(word, Finished), word
    found = json.loads((tmp_path / "bundle" / "report.json").read_text())["diagnostics"]
    for name in (one["kind"] for one in ASKED):
        assert all(math.isfinite(value) for value in found[name]["figures"]["student"].values()), found[name]
    layers = [row["layer"] for row in found["mahalanobis"]["table"]]
    assert layers == ["bert.encoder.layer.0", "bert.encoder.layer.1", "classifier"]


def test_a_file_without_the_column_is_refused_with_its_field(tmp_path: Path) -> None:
    word = play(assignment(tmp_path, other="words\na\n"), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code) == ("user", "invalid_data")
    assert "'text'" in word.message
