"""Saves all that makes the next step, as safetensors and JSON, so that a resumed run takes the same steps.

A checkpoint is a folder `step-N`: `state.safetensors` with every tensor (student, EMA, parts of losses, optimizer,
random states) and `checkpoint.json` with the rest and the digest of the tensors. Processes that each hold a part of the
tensors write them at the same time: the first rows are in that file, the others' in `state-1.safetensors` and so on.
Whoever goes on reads the rows that it needs, so their number may change. All is written under another name, synced,
then renamed: a folder that has its name is whole.
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
from safetensors.torch import save_file
from torch import Tensor, nn

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan
from worker.distributed.parts import Stored, open_pieces
from worker.distributed.ranks import SINGLE_PROCESS, SingleProcess
from worker.training.history import History, Point
from worker.training.metric_logger import refuse_spoilt
from worker.training.state import Best, TrainState

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
    ledger: dict[str, Any] = {}
    """What the training method counts (see `MethodState`)."""
    groups: list[dict[str, Any]]
    """Settings of the optimizer's parameter groups."""
    learners: dict[str, list[dict[str, Any]]] = {}
    """The same of the networks that the method trains beside the student; left out where there are none."""
    sha256: str
    """Of the file of tensors."""
    parts: list[str] = []
    """The same of the files of the other processes that saved a part, in their order."""
    best: Point | None = None
    """Metrics of the best evaluated epoch; its weights are among the tensors where they are to be exported."""
    history: list[Point] = []
    """What was measured on the way, thinned out."""


def training_digest(job: JobSpec) -> str:
    """Digest of the parts of a job that decide the weights; its name or its resources may change between attempts.

    Defaults are left out, so that a field that a later version adds leaves the digests of earlier jobs as they were.
    """
    free: dict[str, Any] = dict.fromkeys(("name", "labels", "resources", "priority", "export", "card"), True)
    free |= {"evaluation": True, "recipe": {"checkpoint"}}
    content = job.model_dump(mode="json", exclude=free, exclude_defaults=True)
    if "method" in content["recipe"]:
        content["recipe"][job.recipe.method.digest_key] = content["recipe"].pop("method")
    content["keep"] = job.evaluation.keep  # the weights of the best epoch are only there where kept
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save(
    state: TrainState, job: JobSpec, plan: TrainingPlan, root: Path, ranks: SingleProcess = SINGLE_PROCESS
) -> Path:
    """Write `root/step-N` and remove all but the newest checkpoints; the path of the new one.

    To be called by all `ranks` that have something to save, each of which writes it. Raises UserError (`nan_loss`).
    """
    draft, final = root / f".step-{state.step}", root / f"step-{state.step}"
    if ranks.first:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    mine, files = _apart(ranks.mine(tensors(state))), [draft / _file(number) for number in range(ranks.size)]
    refuse_spoilt(mine, state.step)
    ranks.all_gather(torch.zeros(()))  # the folder is there, on the first one's machine
    draft.mkdir(parents=True, exist_ok=True)
    save_file(mine, path := files[ranks.number])
    _sync(path)
    digests = [
        bytes(said.tolist()).hex() for said in ranks.all_gather(torch.tensor(list(bytes.fromhex(_digest(path)))))
    ]
    ranks.gather_files(files)
    if ranks.first:
        _seal(_record(state, job, plan, digests), draft, final)
        _prune(root, state.step)
    return final


def _record(state: TrainState, job: JobSpec, plan: TrainingPlan, digests: list[str]) -> Record:
    return Record(
        job=training_digest(job),
        train_samples=plan.train_samples,
        step=state.step,
        stage=plan.stage_at(state.step - 1),
        seconds=state.seconds,
        teacher_flops=state.teacher_flops,
        ledger=state.method.model_dump(),
        groups=state.optimizer.state_dict()["param_groups"],
        learners={name: each.optimizer.state_dict()["param_groups"] for name, each in state.learners.items()},
        sha256=digests[0],
        parts=digests[1:],
        best=state.best.found if state.best else None,
        history=state.history.points,
    )


def _seal(record: Record, draft: Path, final: Path) -> None:
    """From here on it is a checkpoint."""
    content = record.model_dump_json(indent=2, exclude=None if record.learners else {"learners"})
    (draft / RECORD).write_text(content, encoding="utf-8")
    for path in (draft / RECORD, draft):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    _sync(final.parent)


def saved(root: Path) -> list[Path]:
    """Checkpoints under `root`, newest first."""
    folders = [path for path in root.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(folders, key=_step_of, reverse=True)


def read_record(folder: Path) -> Record:
    """The record of a whole and sound checkpoint; raises CheckpointError."""
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
        for path, digest in zip(_files(record, folder), (record.sha256, *record.parts), strict=True):
            if _digest(path) != digest:
                raise CheckpointError(f"checkpoint {folder.name} is corrupt: {path.name} lacks the recorded digest")
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"checkpoint {folder.name} is incomplete, corrupt, or of another format") from error
    return record


def read_for(job: JobSpec, plan: TrainingPlan, folder: Path) -> Record:
    """The record of a checkpoint of this very training; raises CheckpointError."""
    record = read_record(folder)
    if record.job != training_digest(job) or record.train_samples != plan.train_samples:
        raise CheckpointError(f"checkpoint {folder.name} belongs to another job or to other data")
    return record


def restore(
    state: TrainState, record: Record, plan: TrainingPlan, folder: Path, ranks: SingleProcess = SINGLE_PROCESS
) -> None:
    """Bring `state`, fresh from the same job, to where it was when `folder` was saved; raises CheckpointError.

    The optimizer must be that of the stage that goes on; where the checkpoint ends a stage, it is left fresh. Each of
    the `ranks` takes what it holds of every tensor.
    """
    try:
        tensors = open_pieces(_files(record, folder))
        _load(state, tensors, record if plan.stage_at(record.step) == record.stage else None, ranks)
        state.method = type(state.method).model_validate(record.ledger)
    except (SafetensorError, OSError, LookupError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder.name} does not fit the job's student or optimizer") from error
    state.step, state.seconds, state.teacher_flops = record.step, record.seconds, record.teacher_flops
    best = {name: stored.read() for name, stored in _under("best/", tensors).items()}
    state.best = Best(record.best, best or None) if record.best else None
    state.history = History(record.history)


def tensors(state: TrainState) -> dict[str, Tensor]:
    """Every tensor that makes the next step, by its name in the file; of a rank its own part."""
    named = {f"student/{name}": tensor for name, tensor in state.student.state_dict().items()}
    if state.ema is not None:
        named |= {f"ema/{name}": tensor for name, tensor in state.ema.model.state_dict().items()}
    named |= {f"parts/{name}": tensor for name, tensor in state.aux_modules.state_dict().items()}
    named |= _moments_of("optimizer/", state.optimizer)
    for learner_name, learner in state.learners.items():
        named |= {f"learner/{learner_name}/{name}": tensor for name, tensor in learner.model.state_dict().items()}
        if learner.ema is not None:
            averages = learner.ema.model.state_dict()
            named |= {f"learner-ema/{learner_name}/{name}": tensor for name, tensor in averages.items()}
        named |= _moments_of(f"learner-optimizer/{learner_name}/", learner.optimizer)
    if state.best is not None and state.best.weights is not None:
        named |= {f"best/{name}": tensor for name, tensor in state.best.weights.items()}
    named["rng/cpu"] = torch.get_rng_state()
    if next(state.student.parameters()).is_cuda:
        named["rng/cuda"] = torch.cuda.get_rng_state()
    return {name: tensor.detach() for name, tensor in named.items()}


def _moments_of(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{index}/{name}": value for index, values in state.items() for name, value in values.items()}


def _apart(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that share their memory, as the first and the last layer of a language model may, are written twice: the
    file format has no word for it."""
    seen: set[int] = set()
    for name, tensor in named.items():
        named[name] = tensor = tensor.contiguous()
        if tensor.data_ptr() in seen and tensor.numel():
            named[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return named


def _load(state: TrainState, tensors: dict[str, Stored], record: Record | None, ranks: SingleProcess) -> None:
    """`record` has the settings of the optimizers; none: they stay fresh."""
    _take_in(state.student, _under("student/", tensors), ranks)
    if state.ema is not None:
        _take_in(state.ema.model, _under("ema/", tensors), ranks)
    _take_in(state.aux_modules, _under("parts/", tensors), ranks)
    for name, learner in state.learners.items():
        _take_in(learner.model, _under(f"learner/{name}/", tensors), ranks)
        if learner.ema is not None:
            _take_in(learner.ema.model, _under(f"learner-ema/{name}/", tensors), ranks)
    if record is not None:
        _continue(state.optimizer, _under("optimizer/", tensors), record.groups, ranks)
        for name, learner in state.learners.items():
            moments = _under(f"learner-optimizer/{name}/", tensors)
            _continue(learner.optimizer, moments, record.learners[name], ranks)
    torch.set_rng_state(tensors["rng/cpu"].read())
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"].read())


def _take_in(module: nn.Module, tensors: dict[str, Stored], ranks: SingleProcess) -> None:
    own = module.state_dict()
    module.load_state_dict({name: ranks.place(stored, own[name]) for name, stored in tensors.items()})


def _continue(
    optimizer: torch.optim.Optimizer, stored: dict[str, Stored], groups: list[dict[str, Any]], ranks: SingleProcess
) -> None:
    owners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        index, _, key = name.partition("/")
        moments.setdefault(int(index), {})[key] = ranks.place(tensor, owners[int(index)])
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    _lay_out_like_parameters(optimizer)


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Files hold rows first; a sum over channels-last moments must run in the order it would have had."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _under(prefix: str, tensors: dict[str, Stored]) -> dict[str, Stored]:
    return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}


def _file(number: int) -> str:
    """Of the part that the process of this number saves."""
    first = Path(TENSORS)
    return f"{first.stem}-{number}{first.suffix}" if number else TENSORS


def _files(record: Record, folder: Path) -> list[Path]:
    return [folder / _file(number) for number in range(1 + len(record.parts))]


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
