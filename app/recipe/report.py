"""Tables of a model's report (`report.json`), for its card and for the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.recipe.tasks import TASKS

ONNX, INT8, PROGRAM = "model.onnx", "model.int8.onnx", "model.pt2"
INTEGER, SPIKING = "model.integer.npz", "model.spiking.npz"
GRAPHS = {"onnx": ONNX, "onnx_int8": INT8, "torch_export": PROGRAM, "integer": INTEGER, "spiking": SPIKING}
"""Files of the graphs and of the models for NumPy, by their key in the report's figures of the student."""
Figures = Mapping[str, Any]
MAIN_METRICS = {
    name: spec.main_metric.higher_is_better
    for spec in TASKS.values()
    for name in (spec.main_metric.name, spec.main_metric.stand_in)
    if name is not None
}
"""Main metrics, in the order in which they are searched: whether higher is better."""


def summary(report: Figures) -> dict[str, Any] | None:
    """The report in one line: the main metric of the exported student and of its teachers.

    `difference` is the student's value minus that of its best teacher. None if the report has no such metric.
    """
    student = report.get("student") or {}
    named = (report.get("epochs") or {}).get("by")
    metric = named if named in student else next((name for name in MAIN_METRICS if name in student), None)
    if metric is None:
        return None
    higher = MAIN_METRICS.get(metric, True)
    found = report.get("teachers") or {"teacher": report.get("teacher") or {}}
    teachers = {name: figures[metric] for name, figures in found.items() if metric in figures}
    best = (max if higher else min)(teachers.values(), default=None)
    return {
        "metric": metric,
        "higher_is_better": higher,
        "value": student[metric],
        "teachers": teachers,
        "difference": None if best is None else student[metric] - best,
    }


def columns(report: Figures) -> dict[str, Figures]:
    """Figures by the titles of the table's columns: teachers (one that learned also as it was before), epochs, files.
    Missing columns are left out."""
    student, epochs = report.get("student") or {}, report.get("epochs") or {}
    teachers = report.get("teachers") or {}
    found = {
        **{f"{name} before": figures.get("before") for name, figures in teachers.items()},
        **(teachers if len(teachers) > 1 else {"teacher": report.get("teacher")}),
        "last epoch": epochs.get("last"),
        "best epoch": epochs.get("best"),
        "model.safetensors": student,
        **{file: student.get(key) for key, file in GRAPHS.items()},
        "float32": (report.get("quantisation") or {}).get("float"),
    }
    return {title: figures for title, figures in found.items() if figures}


def diagnostics(report: Figures) -> Iterator[tuple[str, Figures, dict[str, Figures]]]:
    """Name, entry and columns of every diagnostic; one that was not computed has no columns, and in its entry, under
    `left_out`, the reason."""
    for name, found in (report.get("diagnostics") or {}).items():
        columns = found.get("figures") or {}
        yield name, found, {title.replace("_", " "): figures for title, figures in columns.items()}


def rows(columns: Mapping[str, Figures]) -> Iterator[tuple[str, list[str]]]:
    """Rows of numbers: the name, and the cell in each column."""
    richest = sorted(columns.values(), key=len, reverse=True)  # its order is used
    names = dict.fromkeys(
        name for column in richest for name, value in column.items() if isinstance(value, int | float)
    )
    for name in names:
        yield name, [_cell(figures.get(name)) for figures in columns.values()]


def _cell(value: object) -> str:
    if isinstance(value, float) and abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else ""
