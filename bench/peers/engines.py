"""Each engine trains on the same ground, and returns its losses by step, its final weights, and the time of a step.

The engines keep to their own ways: each uses its own loader, logging and optimizer, with equivalent settings.
Clocks start after the first steps and see training alone, not loading or saving.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from bench.peers.ground import CLIP, EPS, LR, SEED, TEMPERATURE, Ground, Pairs
from worker.machine import make_deterministic
from worker.protocol import Assignment, CachePlace, Failed, Metrics
from worker.trainer.run import run
from worker.training import checkpoint
from worker.training import monitor as watch

UNTIMED = 3
"""Warm-up steps, which are not timed."""
Weights = dict[str, NDArray[np.float32]]


class Taken(NamedTuple):
    """Seconds of a step, as a mean over the timed ones."""

    wall: float
    processor: float
    """CPU time of all threads of the process, which other programs on the machine hardly change."""


class Outcome(NamedTuple):
    """Result of one training."""

    losses: list[float]
    """Losses of every step; empty if they were not requested."""
    step: Taken
    weights: Weights


class Clock:
    """Records the time after every step."""

    def __init__(self) -> None:
        self._ticks: list[Taken] = []

    def tick(self) -> int:
        """Record a step; returns the number of steps."""
        self._ticks.append(Taken(time.perf_counter(), time.process_time()))
        return len(self._ticks)

    def step(self) -> Taken:
        """Time of a step, without the first ones."""
        first, *_, last = self._ticks[UNTIMED - 1 :]
        steps = len(self._ticks) - UNTIMED
        return Taken(*((end - begin) / steps for begin, end in zip(first, last, strict=True)))


Engine = Callable[[Ground, bool], Outcome]
"""Trains on the ground; true requests the loss of every step, which may take time."""


def stillhouse(ground: Ground, curve: bool) -> Outcome:
    """This trainer, as a worker runs it, up to the checkpoint that it saves when it is stopped after the last step."""
    make_deterministic()
    clock, losses, out = Clock(), list[float](), ground.folder / "stillhouse"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()

    def receive(message: object) -> None:
        if isinstance(message, Metrics) and "train/loss" in message.values:
            losses.append(message.values["train/loss"])

    kept = CachePlace(folder=str(ground.folder / "answers")) if ground.objective == "mse" else None
    assignment = Assignment(spec=ground.job, inputs=ground.inputs, teacher_cache=kept)
    with _every_step_reported() if curve else contextlib.nullcontext():
        result = run(assignment, out, receive, lambda: clock.tick() == ground.size.steps)
    if isinstance(result, Failed):
        raise RuntimeError(result.message)
    tensors = load_file(checkpoint.saved(out / watch.CHECKPOINTS)[0] / checkpoint.TENSORS)
    begin = "student/network."
    own = {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}
    return Outcome(losses if curve else [], clock.step(), _as_arrays(own))


@contextlib.contextmanager
def _every_step_reported() -> Any:
    usual, watch.SECONDS_BETWEEN_REPORTS = watch.SECONDS_BETWEEN_REPORTS, 0.0
    try:
        yield
    finally:
        watch.SECONDS_BETWEEN_REPORTS = usual


def plain(ground: Ground, curve: bool) -> Outcome:
    """A bare loop in PyTorch, with all texts tokenized before: the time of the arithmetic alone."""
    samples, order = ground.samples(), ground.order()
    student = _network(ground.student).train()
    inputs, labels = _tokens(ground, samples), torch.tensor(samples.labels)
    teacher = _network(ground.teacher).eval()
    targets = _teacher_outputs(ground, samples) if ground.objective == "mse" else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, eps=EPS, weight_decay=0.0, foreach=True)
    clock, losses = Clock(), list[Tensor]()
    for chosen in torch.tensor(order).split(ground.size.batch):
        part = {name: column[chosen] for name, column in inputs.items()}
        if targets is not None:
            loss = F.mse_loss(student(**part).logits, targets[chosen])
        else:
            with torch.inference_mode():
                taught = teacher(**part).logits
            loss = blend(student(**part).logits, taught.clone(), labels[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        clock.tick()
    return Outcome(_numbers(losses, curve), clock.step(), _as_arrays(student.state_dict()))


def transformers_trainer(ground: Ground, curve: bool) -> Outcome:
    """`transformers.Trainer` with the loss in `compute_loss`, as its users distil with it."""
    from datasets import Dataset
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(ground.student)
    samples = ground.samples().taken(ground.order())
    rows = Dataset.from_dict({**tokenizer(samples.first, samples.second), "labels": samples.labels})
    teacher, losses, clock = _network(ground.teacher).eval(), list[Tensor](), Clock()

    class Distiller(Trainer):  # type: ignore[misc]  # untyped
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Tensor:
            labels = inputs.pop("labels")
            with torch.no_grad():
                taught = teacher(**inputs).logits
            loss = blend(model(**inputs).logits, taught, labels)
            losses.append(loss.detach())
            return loss

    trainer = Distiller(
        _network(ground.student),
        TrainingArguments(**_arguments(ground), train_sampling_strategy="sequential"),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[_ticking(clock)],
    )
    trainer.train()
    return Outcome(_numbers(losses, curve), clock.step(), _as_arrays(trainer.model.state_dict()))


def sentence_transformers(ground: Ground, curve: bool) -> Outcome:
    """`CrossEncoderTrainer` with its `MSELoss`, and the teacher's scores as labels."""
    from datasets import Dataset
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import MSELoss
    from torch.utils.data import SequentialSampler

    order, samples = ground.order(), ground.samples()
    taken, targets = samples.taken(order), _teacher_outputs(ground, samples)[order, 0].tolist()
    rows = Dataset.from_dict({"first": taken.first, "second": taken.second, "label": targets})
    model = CrossEncoder(str(ground.student), num_labels=1, device="cpu")
    clock, losses = Clock(), list[Tensor]()
    loss = MSELoss(model)
    loss.register_forward_hook(lambda _module, _given, value: losses.append(value.detach()))

    def in_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> DefaultBatchSampler:
        return DefaultBatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**_arguments(ground), batch_sampler=in_order),
        train_dataset=rows,
        loss=loss,
        callbacks=[_ticking(clock)],
    )
    trainer.train()
    return Outcome(_numbers(losses, curve), clock.step(), _as_arrays(_under_model(model.state_dict())))


ENGINES: dict[str, Engine] = {
    "stillhouse": stillhouse,
    "a bare loop": plain,
    "transformers.Trainer": transformers_trainer,
    "sentence-transformers": sentence_transformers,
}


def blend(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The `kd` objective of logits (B, C), written for engines without one."""
    soft = F.kl_div(
        F.log_softmax(student / TEMPERATURE, dim=-1),
        F.log_softmax(teacher / TEMPERATURE, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return 0.5 * F.cross_entropy(student, labels) + 0.5 * TEMPERATURE**2 * soft


def _arguments(ground: Ground) -> dict[str, Any]:
    """Arguments of the library's trainers: the same settings, other defaults, without saving or reporting."""
    return {
        "output_dir": str(ground.folder / "theirs"),
        "per_device_train_batch_size": ground.size.batch,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "adam_epsilon": EPS,
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "seed": SEED,
    }


def _ticking(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Ticking(TrainerCallback):  # type: ignore[misc]  # untyped
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    return Ticking()


def _network(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder)


def _tokens(ground: Ground, samples: Pairs) -> dict[str, Tensor]:
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(ground.student)(samples.first, samples.second, return_tensors="pt"))


def _teacher_outputs(ground: Ground, samples: Pairs) -> Tensor:
    """The teacher's outputs for all samples (N, outputs) float32."""
    teacher, inputs = _network(ground.teacher).eval(), _tokens(ground, samples)
    with torch.no_grad():
        batches = zip(*(column.split(ground.size.batch) for column in inputs.values()), strict=True)
        return torch.cat([teacher(**dict(zip(inputs, batch, strict=True))).logits for batch in batches])


def _numbers(losses: Iterable[Tensor], curve: bool) -> list[float]:
    return [float(loss) for loss in losses] if curve else []


def _as_arrays(state: dict[str, Tensor]) -> Weights:
    return {name: tensor.detach().float().numpy() for name, tensor in state.items() if tensor.is_floating_point()}


def _under_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefix that a wrapper added to the names."""
    return {name[name.index("model.") + len("model.") :]: t for name, t in state.items() if "model." in name}
