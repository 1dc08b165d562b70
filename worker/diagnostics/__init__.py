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
from worker.diagnostics.activation_moments import ActivationMomentsAnalysis
from worker.diagnostics.anomaly_maps import AnomalyMapsAnalysis
from worker.diagnostics.base import DiagnosticAnalysis, DiagnosticInputs, DiagnosticResult, HeldOutPart, NotComputable
from worker.diagnostics.calibration import CalibrationAnalysis
from worker.diagnostics.decision_boundary import DecisionBoundaryAnalysis
from worker.diagnostics.hessian import HessianAnalysis
from worker.diagnostics.linear_evaluation import LinearEvaluationAnalysis
from worker.diagnostics.loss_landscape import LossLandscapeAnalysis
from worker.diagnostics.mahalanobis import MahalanobisAnalysis
from worker.diagnostics.robustness import RobustnessAnalysis
from worker.diagnostics.wide_deep import WideDeepAnalysis
from worker.losses.objective import unique_names
from worker.students.model import Model

ANALYSES: dict[type[DiagnosticSpec], Callable[[Any], DiagnosticAnalysis]] = {
    spec.Calibration: CalibrationAnalysis,
    spec.Robustness: RobustnessAnalysis,
    spec.DecisionBoundary: DecisionBoundaryAnalysis,
    spec.AnomalyMaps: AnomalyMapsAnalysis,
    spec.Mahalanobis: MahalanobisAnalysis,
    spec.Hessian: HessianAnalysis,
    spec.LossLandscape: LossLandscapeAnalysis,
    spec.LinearEvaluation: LinearEvaluationAnalysis,
    spec.WideDeep: WideDeepAnalysis,
    spec.ActivationMoments: ActivationMomentsAnalysis,
}
"""Analyses by the class of their spec."""
NOT_COMPUTED, IN_DOUBT = "diagnostic_not_computed", "diagnostic_in_doubt"
"""Codes of warnings."""
OUT_OF_MEMORY = "memory ran out"
FAILED = "it had an internal error, which is in the worker's log"


class Diagnosed(NamedTuple):
    """All diagnostics of a job."""

    figures: dict[str, dict[str, Any]]
    """For the report, by kind; kinds that appear several times are numbered."""
    warnings: list[dict[str, str]]
    """`code` and `message` of each."""
    pictures: list[str]
    """Names of the written files."""


def run_diagnostics(
    specs: Sequence[DiagnosticSpec],
    predict: Callable[[Batch], Tensor],
    held_out: HeldOutPart,
    seed: int,
    device: torch.device,
    folder: Path,
    student: Model | None = None,
    teachers: Mapping[str, Model] = {},
    train: Batch | None = None,
    files: Mapping[str, Batch] = {},
) -> Diagnosed:
    """Run every diagnostic of a job in turn, and write their pictures into `folder`; see `DiagnosticInputs`.

    `predict` returns outputs (n, C) float32 on the CPU for a batch of raw samples; `train` are the training samples,
    and `files` those of the files that diagnostics name, by the path of the field. A diagnostic that fails leaves its
    reason in the figures and a warning, and the others continue: the trained student is valid without them. Raises
    OSError if a picture can't be written.
    """
    found = Diagnosed({}, [], [])
    names = unique_names([_kind(each) for each in specs])
    for index, (name, one) in enumerate(zip(names, specs, strict=True)):
        entry: dict[str, Any] = one.model_dump(mode="json")
        fitted, judged = split_held_out(held_out, one, seed)
        further = {field: files[f"evaluation.diagnostics[{index}].{field}"] for field in one.files}
        used = _drawn(train, one.trained(train.samples), seed) if train is not None else None
        inputs = DiagnosticInputs(predict, judged, fitted, seed, device, student, teachers, used, further)
        entry["samples"] = {"fitted": fitted.samples.samples if fitted else 0, "judged": judged.samples.samples}
        entry["samples"]["training"] = used.samples if used else 0
        result = _result(ANALYSES[type(one)](one), inputs)
        if isinstance(result, str):
            entry["left_out"] = result
            found.warnings.append({"code": NOT_COMPUTED, "message": f"{name} was not computed: {result}"})
        else:
            entry |= {"figures": result.figures, "table": result.table, "warnings": result.warnings}
            entry["picture"] = _picture(result, f"{name}.png", folder)
            found.pictures.extend([entry["picture"]] if entry["picture"] else [])
            found.warnings.extend({"code": IN_DOUBT, "message": f"{name}: {each}"} for each in result.warnings)
        found.figures[name] = entry
    return found


def split_held_out(held_out: HeldOutPart, one: DiagnosticSpec, seed: int) -> tuple[HeldOutPart | None, HeldOutPart]:
    """Samples to fit on (none if the kind fits nothing) and to measure on: drawn by `seed`, the same for every kind."""
    whole = held_out.samples.samples
    count, measured = parts_of(whole, one)
    if measured == whole:
        return None, held_out
    order = torch.randperm(whole, generator=generator(seed, "diagnostics"))
    parts = order[:count], order[count : count + measured]
    fitted, judged = (_subset(held_out, chosen.sort().values) for chosen in parts)
    return (fitted if count else None), judged


def _subset(held_out: HeldOutPart, chosen: Tensor) -> HeldOutPart:
    """The samples with the numbers `chosen` (n,) int64, and the teachers' rows for them."""
    samples, teacher = held_out
    taken = samples.take_samples(chosen.to(samples.storage_device))
    if teacher is None:
        return HeldOutPart(taken)
    of_chosen = torch.zeros(samples.samples, dtype=torch.bool).index_fill(0, chosen, True)
    return HeldOutPart(taken, teacher[of_chosen.repeat_interleave(held_out.rows_of_samples)])


def _drawn(train: Batch, count: int, seed: int) -> Batch | None:
    """So many training samples; none for 0."""
    if count in (0, train.samples):
        return train if count else None
    order = torch.randperm(train.samples, generator=generator(seed, "diagnostics", "training"))
    return train.take_samples(order[:count].sort().values.to(train.storage_device))


def _result(analysis: DiagnosticAnalysis, inputs: DiagnosticInputs) -> DiagnosticResult | str:
    """The result, or the reason why there is none."""
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
