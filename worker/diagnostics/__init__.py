"""Diagnostics: analyses of the exported student beyond the metrics of its task, one module per kind."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.recipe import diagnostics as spec
from app.recipe.diagnostics import DiagnosticSpec, parts_of
from worker.data.batches import Batch
from worker.data.randomness import generator
from worker.diagnostics.base import DiagnosticAnalysis, DiagnosticInputs, DiagnosticResult, HeldOutPart, NotComputable
from worker.diagnostics.calibration import CalibrationAnalysis
from worker.diagnostics.decision_boundary import DecisionBoundaryAnalysis
from worker.losses.objective import unique_names
from worker.students.model import Model

ANALYSES: dict[type[DiagnosticSpec], Callable[[Any], DiagnosticAnalysis]] = {
    spec.Calibration: CalibrationAnalysis,
    spec.DecisionBoundary: DecisionBoundaryAnalysis,
}
"""By the class of the contract."""
NOT_COMPUTED, IN_DOUBT = "diagnostic_not_computed", "diagnostic_in_doubt"
"""Codes of warnings."""
OUT_OF_MEMORY = "memory ran out"
FAILED = "it met an error of its own, which the worker's log describes"


class Diagnosed(NamedTuple):
    """All diagnostics of a job."""

    figures: dict[str, dict[str, Any]]
    """For the report, by kind; kinds that appear several times are numbered."""
    warnings: list[dict[str, str]]
    """`code` and `message` of each."""
    pictures: list[str]
    """Files that were written."""


def run_diagnostics(
    specs: Sequence[DiagnosticSpec],
    predict: Callable[[Batch], Tensor],
    held_out: HeldOutPart,
    seed: int,
    device: torch.device,
    folder: Path,
    student: Model | None = None,
    teachers: Mapping[str, Model] = {},
) -> Diagnosed:
    """Run every diagnostic of a job in turn, and write their pictures into `folder`; see `DiagnosticInputs`.

    One that fails leaves its reason in the figures and a warning, and the others go on: the student is trained, and
    good for what it is without them. Raises OSError where a picture can't be written.
    """
    found = Diagnosed({}, [], [])
    for name, one in zip(unique_names([_kind(each) for each in specs]), specs, strict=True):
        told: dict[str, Any] = one.model_dump(mode="json")
        fitted, judged = split_held_out(held_out, one, seed)
        inputs = DiagnosticInputs(predict, judged, fitted, seed, device, student, teachers)
        told["samples"] = {"fitted": fitted.samples.samples if fitted else 0, "judged": judged.samples.samples}
        result = _result(ANALYSES[type(one)](one), inputs)
        if isinstance(result, str):
            told["left_out"] = result
            found.warnings.append({"code": NOT_COMPUTED, "message": f"{name} was not computed: {result}"})
        else:
            told |= {"figures": result.figures, "table": result.table, "warnings": result.warnings}
            told["picture"] = _picture(result, f"{name}.png", folder)
            found.pictures.extend([told["picture"]] if told["picture"] else [])
            found.warnings.extend({"code": IN_DOUBT, "message": f"{name}: {each}"} for each in result.warnings)
        found.figures[name] = told
    return found


def split_held_out(held_out: HeldOutPart, one: DiagnosticSpec, seed: int) -> tuple[HeldOutPart | None, HeldOutPart]:
    """Parts to fit on, where the kind fits anything, and to measure on: drawn by `seed`, the same for every kind."""
    whole = held_out.samples.samples
    count, measured = parts_of(whole, one)
    if measured == whole:
        return None, held_out
    order = torch.randperm(whole, generator=generator(seed, "diagnostics"))
    parts = order[:count], order[count : count + measured]
    fitted, judged = (_taken(held_out, chosen.sort().values) for chosen in parts)
    return (fitted if count else None), judged


def _taken(held_out: HeldOutPart, chosen: Tensor) -> HeldOutPart:
    samples, teacher = held_out
    rows = None if teacher is None else teacher.reshape(samples.samples, -1, teacher.shape[-1])[chosen].flatten(0, 1)
    return HeldOutPart(samples.take_samples(chosen.to(samples.storage_device)), rows)


def _result(analysis: DiagnosticAnalysis, inputs: DiagnosticInputs) -> DiagnosticResult | str:
    """What was found, or why nothing was."""
    try:
        return analysis(inputs)
    except NotComputable as error:
        return str(error)
    except (MemoryError, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return FAILED


def _picture(result: DiagnosticResult, name: str, folder: Path) -> str | None:
    if result.draw is None:
        return None
    result.draw(folder / name)
    return name


def _kind(one: DiagnosticSpec) -> str:
    kind: str = type(one).model_fields["kind"].default
    return kind
