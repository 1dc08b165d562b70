"""Saves the state of training as safetensors and JSON, so that a resumed run takes the same steps.

A checkpoint is a folder `step-N`: `state.safetensors` with every tensor (student, EMA, modules of losses, optimizer,
random states) and `checkpoint.json` with the rest and the digest of the tensors. Processes that each hold a shard of
the tensors write it at the same time: the first rows are in that file, the others in `state-1.safetensors` and so on. A
resumed process reads the rows that it needs, so the number of processes may change. All files are written under another
name, synced, then renamed: a folder with the final name is complete.
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
from worker.training.metric_logger import require_finite_weights
from worker.training.state import Best, TrainState

KEPT = 2
"""Checkpoints kept on disk: a crash of the machine may truncate the newest."""
TENSORS = "state.safetensors"
RECORD = "checkpoint.json"


class CheckpointError(Exception):
    """A checkpoint that can't be resumed from; the message has the reason."""


class Record(BaseModel):
    """Content of `checkpoint.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    """Version of this layout; others are refused."""
    job: str
    """Digest of the job's training settings."""
    train_samples: int
    step: Annotated[int, Field(ge=0)]
    stage: Annotated[int, Field(ge=0)]
    """Index of the stage that the optimizer belongs to."""
    seconds: Annotated[float, Field(ge=0)]
    teacher_flops: Annotated[int, Field(ge=0)] = 0
    ledger: dict[str, Any] = {}
    """Counters of the training method (see `MethodState`)."""
    groups: list[dict[str, Any]]
    """Settings of the optimizer's parameter groups."""
    learners: dict[str, list[dict[str, Any]]] = {}
    """The same for the networks that the method trains beside the student; omitted if there are none."""
    sha256: str
    """Digest of the file of tensors."""
    parts: list[str] = []
    """Digests of the files of the other processes that saved a shard, in their order."""
    best: Point | None = None
    """Metrics of the best evaluated epoch; its weights are among the tensors if they are to be exported."""
    history: list[Point] = []
    """Thinned history of metrics."""


def training_digest(job: JobSpec) -> str:
    """Digest of the fields of a job that affect the weights; its name or its resources may change between attempts.

    Defaults are left out, so that a field added by a later version does not change the digests of earlier jobs.
    """
    free: dict[str, Any] = dict.fromkeys(("name", "labels", "resources", "priority", "export", "card"), True)
    free |= {"evaluation": True, "recipe": {"checkpoint"}}
    content = job.model_dump(mode="json", exclude=free, exclude_defaults=True)
    if "method" in content["recipe"]:
        content["recipe"][job.recipe.method.digest_key] = content["recipe"].pop("method")
    content["keep"] = job.evaluation.keep  # decides whether the weights of the best epoch are stored
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save(
    state: TrainState, job: JobSpec, plan: TrainingPlan, root: Path, ranks: SingleProcess = SINGLE_PROCESS
) -> Path:
    """Write `root/step-N` and remove all but the newest checkpoints; returns the path of the new one.

    To be called by all `ranks` that have tensors to save; each writes its own. Raises UserError (`nan_loss`).
    """
    draft, final = root / f".step-{state.step}", root / f"step-{state.step}"
    if ranks.first:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    own, files = _unshared(ranks.to_save(tensors(state))), [draft / _file(number) for number in range(ranks.size)]
    require_finite_weights(own, state.step)
    ranks.all_gather(torch.zeros(()))  # wait for the folder on the first rank's machine
    draft.mkdir(parents=True, exist_ok=True)
    save_file(own, path := files[ranks.number])
    _sync(path)
    digests = [
        bytes(digest.tolist()).hex() for digest in ranks.all_gather(torch.tensor(list(bytes.fromhex(_digest(path)))))
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
    """Write the record and rename the draft, which makes it a checkpoint."""
    content = record.model_dump_json(indent=2, exclude=None if record.learners else {"learners"})
    (draft / RECORD).write_text(content, encoding="utf-8")
    for path in (draft / RECORD, draft):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    _sync(final.parent)


def saved(root: Path) -> list[Path]:
    """Folders of the checkpoints under `root`, newest first."""
    folders = [path for path in root.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(folders, key=_step_of, reverse=True)


def read_record(folder: Path) -> Record:
    """The record of a complete and intact checkpoint; raises CheckpointError."""
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
        for path, digest in zip(_files(record, folder), (record.sha256, *record.parts), strict=True):
            if _digest(path) != digest:
                raise CheckpointError(f"checkpoint {folder.name} is corrupt: the digest of {path.name} is wrong")
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"checkpoint {folder.name} is incomplete, corrupt, or of another format") from error
    return record


def read_for(job: JobSpec, plan: TrainingPlan, folder: Path) -> Record:
    """The record of a checkpoint of this job's training; raises CheckpointError."""
    record = read_record(folder)
    if record.job != training_digest(job) or record.train_samples != plan.train_samples:
        raise CheckpointError(f"checkpoint {folder.name} belongs to another job or to other data")
    return record


def restore(
    state: TrainState, record: Record, plan: TrainingPlan, folder: Path, ranks: SingleProcess = SINGLE_PROCESS
) -> None:
    """Load the checkpoint in `folder` into `state`, a new state of the same job; raises CheckpointError.

    The optimizer must be that of the stage to continue; if the checkpoint ends a stage, it stays as it is. Each of the
    `ranks` loads its shard of every tensor.
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
    """Every tensor of the state, in its own shape and dtype, by its name in the file; on a rank its own shard."""
    named = {f"student/{name}": tensor for name, tensor in state.student.state_dict().items()}
    if state.ema is not None:
        named |= {f"ema/{name}": tensor for name, tensor in state.ema.model.state_dict().items()}
    named |= {f"parts/{name}": tensor for name, tensor in state.aux_modules.state_dict().items()}
    named |= _moments_of("optimizer/", state.optimizer)
    for learner_name, learner in state.learners.items():
        named |= {f"learner/{learner_name}/{name}": tensor for name, tensor in learner.model.state_dict().items()}
        parts = learner.aux_modules.state_dict()
        named |= {f"learner-parts/{learner_name}/{name}": tensor for name, tensor in parts.items()}
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


def _unshared(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, as the first and the last layer of a language model may: safetensors requires
    it."""
    seen: set[int] = set()
    for name, tensor in named.items():
        named[name] = tensor = tensor.contiguous()
        if tensor.data_ptr() in seen and tensor.numel():
            named[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return named


def _load(state: TrainState, tensors: dict[str, Stored], record: Record | None, ranks: SingleProcess) -> None:
    """Load tensors; `record` has the settings of the optimizers; none: these stay as they are."""
    _load_module(state.student, _under("student/", tensors), ranks)
    if state.ema is not None:
        _load_module(state.ema.model, _under("ema/", tensors), ranks)
    _load_module(state.aux_modules, _under("parts/", tensors), ranks)
    for name, learner in state.learners.items():
        _load_module(learner.model, _under(f"learner/{name}/", tensors), ranks)
        _load_module(learner.aux_modules, _under(f"learner-parts/{name}/", tensors), ranks)
        if learner.ema is not None:
            _load_module(learner.ema.model, _under(f"learner-ema/{name}/", tensors), ranks)
    if record is not None:
        _load_optimizer(state.optimizer, _under("optimizer/", tensors), record.groups, ranks)
        for name, learner in state.learners.items():
            moments = _under(f"learner-optimizer/{name}/", tensors)
            _load_optimizer(learner.optimizer, moments, record.learners[name], ranks)
    torch.set_rng_state(tensors["rng/cpu"].read())
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"].read())


def _load_module(module: nn.Module, tensors: dict[str, Stored], ranks: SingleProcess) -> None:
    targets = module.state_dict()
    module.load_state_dict({name: ranks.load(stored, targets[name]) for name, stored in tensors.items()})


def _load_optimizer(
    optimizer: torch.optim.Optimizer, stored: dict[str, Stored], groups: list[dict[str, Any]], ranks: SingleProcess
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        index, _, key = name.partition("/")
        moments.setdefault(int(index), {})[key] = ranks.load(tensor, parameters[int(index)])
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    _match_memory_format(optimizer)


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory format of their parameters, so that sums over them run in the same order as before. Files
    store them row-major."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _under(prefix: str, tensors: dict[str, Stored]) -> dict[str, Stored]:
    return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}


def _file(number: int) -> str:
    """Name of the file that the process of this number writes."""
    first = Path(TENSORS)
    return f"{first.stem}-{number}{first.suffix}" if number else TENSORS


def _files(record: Record, folder: Path) -> list[Path]:
    return [folder / _file(number) for number in range(1 + len(record.parts))]


def _prune(root: Path, newest: int) -> None:
    """Remove all but the newest checkpoints, and those of later steps, which are of an abandoned run."""
    folders = saved(root)
    past = [folder for folder in folders if _step_of(folder) <= newest]
    for folder in set(folders) - set(past[:KEPT]):
        doomed = folder.with_name(f".{folder.name}")  # renamed first, so that no reader finds half a checkpoint
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
