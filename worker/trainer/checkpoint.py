"""Saves all that makes the next step, as safetensors and JSON, so that a resumed run takes the same steps.

A checkpoint is a folder `step-N`: `state.safetensors` with every tensor (student, EMA, parts of losses, optimizer,
random states) and `checkpoint.json` with the rest and the digest of the tensors. It is written under another name,
synced, then renamed: a folder that has its name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.recipe.job import Evaluation, JobSpec
from app.recipe.plan import TrainingPlan
from worker.trainer.history import History, Point
from worker.trainer.ranks import ALONE, Alone
from worker.trainer.state import Best, Ledger, TrainState

KEPT = 2
"""Checkpoints left on disk: the newest may be cut short by the death of the machine."""
TENSORS = "state.safetensors"
RECORD = "checkpoint.json"


class CheckpointError(Exception):
    """A checkpoint that can't be continued from; the text says why."""


class Record(BaseModel):
    """Content of `checkpoint.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    """Version of this layout; others are refused."""
    job: str
    """Digest of what the job says about training."""
    train_samples: int
    step: Annotated[int, Field(ge=0)]
    stage: Annotated[int, Field(ge=0)]
    """The stage that the optimizer belongs to."""
    seconds: Annotated[float, Field(ge=0)]
    teacher_flops: Annotated[int, Field(ge=0)] = 0
    ledger: Ledger = Ledger()
    """What was written for training so far."""
    groups: list[dict[str, Any]]
    """Settings of the optimizer's parameter groups."""
    sha256: str
    """Of the file of tensors."""
    best: Point | None = None
    """Metrics of the best evaluated epoch; its weights are among the tensors where they are to be exported."""
    history: list[Point] = []
    """What was measured on the way, thinned out."""


def training_digest(job: JobSpec) -> str:
    """Digest of the parts of a job that decide the weights; its name or its resources may change between attempts."""
    free = {"name": True, "labels": True, "resources": True, "priority": True, "export": True}
    judged = set(Evaluation.model_fields) - {"keep"}  # the weights of the best epoch are only there where kept
    content = job.model_dump(mode="json", exclude={**free, "evaluation": judged, "recipe": {"checkpoint"}})
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save(state: TrainState, whole: dict[str, Tensor], job: JobSpec, plan: TrainingPlan, root: Path) -> Path:
    """Write `root/step-N` and remove all but the newest checkpoints; the path of the new one.

    `whole` are the state's `tensors`, gathered where processes hold parts of them.
    """
    root.mkdir(parents=True, exist_ok=True)
    draft, final = root / f".step-{state.step}", root / f"step-{state.step}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_file(whole, draft / TENSORS)
    record = Record(
        job=training_digest(job),
        train_samples=plan.train_samples,
        step=state.step,
        stage=plan.stage_at(state.step - 1),
        seconds=state.seconds,
        teacher_flops=state.teacher_flops,
        ledger=state.ledger,
        groups=state.optimizer.state_dict()["param_groups"],
        sha256=_digest(draft / TENSORS),
        best=state.best.found if state.best else None,
        history=state.history.points,
    )
    (draft / RECORD).write_text(record.model_dump_json(indent=2), encoding="utf-8")
    for path in (draft / TENSORS, draft / RECORD, draft):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    _sync(root)
    _prune(root, state.step)
    return final


def saved(root: Path) -> list[Path]:
    """Checkpoints under `root`, newest first."""
    folders = [path for path in root.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(folders, key=_step_of, reverse=True)


def read_record(folder: Path) -> Record:
    """The record of a whole and sound checkpoint; raises CheckpointError."""
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
        digest = _digest(folder / TENSORS)
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"checkpoint {folder.name} is incomplete, corrupt, or of another format") from error
    if digest != record.sha256:
        raise CheckpointError(f"checkpoint {folder.name} is corrupt: {TENSORS} does not have the recorded digest")
    return record


def read_for(job: JobSpec, plan: TrainingPlan, folder: Path) -> Record:
    """The record of a checkpoint of this very training; raises CheckpointError."""
    record = read_record(folder)
    if record.job != training_digest(job) or record.train_samples != plan.train_samples:
        raise CheckpointError(f"checkpoint {folder.name} belongs to another job or to other data")
    return record


def restore(state: TrainState, record: Record, plan: TrainingPlan, folder: Path, ranks: Alone = ALONE) -> None:
    """Bring `state`, fresh from the same job, to where it was when `folder` was saved; raises CheckpointError.

    The optimizer must be that of the stage that goes on; where the checkpoint ends a stage, it is left fresh. Each of
    the `ranks` takes what it holds of every tensor.
    """
    groups = record.groups if plan.stage_at(record.step) == record.stage else None
    try:
        tensors = load_file(folder / TENSORS)
        _load(state, tensors, groups, ranks)
    except (SafetensorError, LookupError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder.name} does not fit the job's student or optimizer") from error
    state.step, state.seconds, state.teacher_flops = record.step, record.seconds, record.teacher_flops
    state.ledger = record.ledger
    state.best = Best(record.best, _under("best/", tensors) or None) if record.best else None
    state.history = History(record.history)


def tensors(state: TrainState) -> dict[str, Tensor]:
    """Every tensor that makes the next step, by its name in the file; of a rank its own part."""
    named = {f"student/{name}": tensor for name, tensor in state.student.state_dict().items()}
    if state.ema is not None:
        named |= {f"ema/{name}": tensor for name, tensor in state.ema.model.state_dict().items()}
    named |= {f"parts/{name}": tensor for name, tensor in state.parts.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        named |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
    if state.best is not None and state.best.weights is not None:
        named |= {f"best/{name}": tensor for name, tensor in state.best.weights.items()}
    named["rng/cpu"] = torch.get_rng_state()
    if next(state.student.parameters()).is_cuda:
        named["rng/cuda"] = torch.cuda.get_rng_state()
    return _apart({name: tensor.detach().contiguous() for name, tensor in named.items()})


def _apart(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that share their memory, as the first and the last layer of a language model may, are written twice: the
    file format has no word for it."""
    seen: set[int] = set()
    for name, tensor in named.items():
        if tensor.data_ptr() in seen and tensor.numel():
            named[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return named


def _load(state: TrainState, tensors: dict[str, Tensor], groups: list[dict[str, Any]] | None, ranks: Alone) -> None:
    own = state.student.state_dict()
    student = _under("student/", tensors)
    state.student.load_state_dict({name: ranks.place(value, own[name]) for name, value in student.items()})
    if state.ema is not None:
        state.ema.model.load_state_dict(_under("ema/", tensors))
    state.parts.load_state_dict(_under("parts/", tensors))
    if groups is not None:
        owners = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        state.optimizer.load_state_dict({"state": _moments(tensors, owners, ranks), "param_groups": groups})
        _lay_out_like_parameters(state.optimizer)
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])


def _moments(tensors: dict[str, Tensor], owners: list[Tensor], ranks: Alone) -> dict[int, dict[str, Tensor]]:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        index, _, key = name.partition("/")
        moments.setdefault(int(index), {})[key] = ranks.place(tensor, owners[int(index)])
    return moments


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Files hold rows first; a sum over channels-last moments must run in the order it would have had."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _prune(root: Path, newest: int) -> None:
    """Later steps than the newest were left by a run that was given up."""
    folders = saved(root)
    past = [folder for folder in folders if _step_of(folder) <= newest]
    for folder in set(folders) - set(past[:KEPT]):
        doomed = folder.with_name(f".{folder.name}")  # whoever reads there meets a whole checkpoint or none
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
