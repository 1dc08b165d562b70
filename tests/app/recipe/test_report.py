"""The table of a report."""

from __future__ import annotations

from typing import Any

from app.recipe.report import columns, rows, summary

REPORT: dict[str, Any] = {
    "teacher": {"bytes": 2_000_000, "accuracy": 0.95},
    "teachers": {"teacher": {"bytes": 2_000_000, "accuracy": 0.95}},
    "epochs": {
        "kept": "best",
        "last": {"step": 20, "accuracy": 0.8, "agreement": 0.7},
        "best": {"step": 10, "accuracy": 0.9, "agreement": 0.8},
    },
    "student": {
        "bytes": 50_000,
        "accuracy": 0.9,
        "agreement": 0.8,
        "latency_runtime": "torch",
        "onnx": {"bytes": 60_000, "accuracy": 0.9},
        "onnx_int8": {"bytes": 20_000, "accuracy": 0.89, "samples_per_second": 12_345.6},
    },
}


def test_teachers_epochs_and_files_stand_side_by_side() -> None:
    titles = ["teacher", "last epoch", "best epoch", "model.safetensors", "model.onnx", "model.int8.onnx"]
    assert list(columns(REPORT)) == titles
    cells = dict(rows(columns(REPORT)))
    assert cells["accuracy"] == ["0.95", "0.8", "0.9", "0.9", "0.9", "0.89"]
    assert cells["bytes"] == ["2,000,000", "", "", "50,000", "60,000", "20,000"]
    assert cells["agreement"] == ["", "0.7", "0.8", "0.8", "", ""]
    assert cells["samples_per_second"] == ["", "", "", "", "", "12,346"]
    assert set(cells) == {"bytes", "accuracy", "agreement", "samples_per_second", "step"}
    assert list(cells)[:3] == ["bytes", "accuracy", "agreement"]


def test_several_teachers_have_a_column_each() -> None:
    teachers = {"large": {"accuracy": 0.9}, "small": {"accuracy": 0.8}}
    assert list(columns({**REPORT, "teachers": teachers}))[:3] == ["large", "small", "last epoch"]


def test_what_a_report_lacks_is_left_out() -> None:
    assert columns({"student": {"accuracy": 0.5}, "teacher": None}) == {"model.safetensors": {"accuracy": 0.5}}
    assert columns({}) == {}
    assert list(rows({})) == []


def test_a_report_in_short_is_its_main_metric_beside_the_best_teachers() -> None:
    teachers = {"a": {"perplexity": 12.0}, "b": {"perplexity": 9.0}, "c": {"flops": 1}}
    found = summary(
        {"student": {"perplexity": 10.0, "accuracy": 0.5}, "teachers": teachers, "epochs": {"by": "perplexity"}}
    )
    assert found == {
        "metric": "perplexity",
        "higher_is_better": False,
        "value": 10.0,
        "teachers": {"a": 12.0, "b": 9.0},
        "difference": 1.0,
    }


def test_a_report_may_lack_a_teacher_or_a_metric() -> None:
    plain = summary({"student": {"accuracy": 0.5}, "teacher": None, "teachers": {}, "epochs": {"by": "accuracy"}})
    assert plain == {"metric": "accuracy", "higher_is_better": True, "value": 0.5, "teachers": {}, "difference": None}
    assert summary({}) is None
    assert summary({"student": {"flops": 1}}) is None
