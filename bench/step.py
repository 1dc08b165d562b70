"""Cost of distillation per training step: the steps of all methods compared with the student's plain one, as a table.

python -m bench.step [METHOD …] [--device cuda] [--write docs/performance.md]

Every method of `examples/methods.yaml` takes the steps of a job with its main objective: batches, forward passes, loss,
backward pass, optimizer. In turn with it come the same student's step of cross-entropy alone and the teacher's bare
forward pass, so that whatever else the machine does meets all of them alike. A ratio is the median over the rounds.
Samples and weights are random: times do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.recipe.job import JobSpec
from app.recipe.plan import plan_training
from app.recipe.students.architectures import WideResNet
from app.recipe.students.inputs import ImageInput
from app.recipe.students.model import ModelConfig, Preprocessing
from app.recipe.teachers.cache import DenseCache
from bench.quality import ALONE, CLASSES, STUDENT, TEACHER, read_methods
from bench.report import replace_part, system, versions
from worker.data.batches import Batch, Batches, whole_split
from worker.machine import make_deterministic
from worker.protocol import CachePlace
from worker.students.model import Model
from worker.tasks import task_for
from worker.teachers import head_of
from worker.teachers.cache import CachedTeacher, CacheKey
from worker.training.loop import set_rate, take_step
from worker.training.stages import TeacherHandle, build_stages, fresh_optimizer, open_teacher
from worker.training.state import initial_state

WARM, COLD = 1.10, 1.05
"""Largest ratios, for methods that use only logits: with all teacher outputs cached, over the plain step;
with none cached, over the sum of teacher and plain step."""
BATCHES = 4
"""Steps of an epoch."""
WARM_UPS = 2
SEED = 3
Step = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """Sizes of the training, and number of timed rounds."""

    side: int = 32
    """Side of the images, in pixels."""
    batch: int = 64
    rounds: int = 7
    device: str = "cpu"


class Times(NamedTuple):
    """One method: milliseconds (medians), and ratios (medians of rounds)."""

    plain: float
    """The student's step of cross-entropy."""
    warm: float | None
    """Its step with cached teacher outputs; none if the teacher has to run on every batch."""
    cold: float | None
    """Its step with the teacher; none if it needs no teacher."""
    over_plain: float | None
    over_both: float | None
    """The cold step over the teacher's forward pass and the plain step."""
    logits_alone: bool


def compare(size: Size, wanted: Sequence[str] = ()) -> Iterator[tuple[str, Times]]:
    """Times of every method, one after the other."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in wanted or [name for name, each in read_methods().items() if name != ALONE and "method" not in each]:
            yield name, _timed(_Bench(name, size, Path(scratch) / name), size)


class _Bench:
    """The contestants of one method."""

    def __init__(self, method: str, size: Size, folder: Path) -> None:
        self._size, self._folder, self._methods = size, folder, read_methods()
        self._samples = _samples(size)
        self.job = _job(self._methods[method], size)
        self.logits_alone = not any(term.taps().student or term.taps().teacher for term in self.job.recipe.losses)
        self.needs_teacher = any(term.needs_teacher for term in self.job.recipe.losses)
        self.looks_inside = any(term.taps().teacher for term in self.job.recipe.losses)

    def steps(self) -> dict[str, Step]:
        """Contestants by name; always with `plain`."""
        found = {"plain": self._step(_job(self._methods[ALONE], self._size), None)}
        if not self.needs_teacher:
            return found | {"warm": self._step(self.job, None)}
        taught = open_teacher(_model(TEACHER, self._size), self.job, "teacher")
        found |= {"teacher": self._forward(taught.model), "cold": self._step(self.job, taught)}
        if not self.looks_inside:
            taught = open_teacher(_model(TEACHER, self._size), self.job, "teacher")
            found["warm"] = self._step(self.job, taught._replace(source=self._kept(taught)))
        return found

    def _step(self, job: JobSpec, teacher: TeacherHandle | None) -> Step:
        state = initial_state(job.recipe, _model(STUDENT, self._size))
        batches = Batches(self._samples, self._size.batch, SEED)
        plan = plan_training(job.recipe, len(self._samples))
        stage = build_stages(
            task_for(job.task), job, plan, batches, state, {"teacher": teacher} if teacher else {}, SEED
        )[-1]
        stage.objective.prepare()
        state.optimizer, state.step = fresh_optimizer(stage, state.student), stage.plan.first

        def step() -> None:
            set_rate(stage, state)
            take_step(stage, state, stage.step_inputs(state.step))
            state.step += 1

        return step

    def _forward(self, teacher: Model) -> Step:
        images = self._samples.inputs["images"][: self._size.batch]
        model = deepcopy(teacher).eval()

        def forward() -> None:
            with torch.inference_mode():
                model(images)

        return forward

    def _kept(self, taught: TeacherHandle) -> CachedTeacher:
        """All teacher outputs are cached."""
        subject = CacheKey("teacher", "data", len(self._samples), CLASSES, self._size.device)
        place = CachePlace(folder=str(self._folder))
        kept = CachedTeacher(taught.source, DenseCache(), subject, place, _complain, head_of(taught.model))
        kept(self._samples)
        return kept


def _timed(bench: _Bench, size: Size) -> Times:
    steps = bench.steps()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UPS + size.rounds):
        for name, step in steps.items():
            begun = _now(size.device)
            step()
            if number >= WARM_UPS:
                taken[name].append(1e3 * (_now(size.device) - begun))
    return _figures(taken, bench.logits_alone)


def _figures(taken: dict[str, list[float]], logits_alone: bool) -> Times:
    medians = {name: statistics.median(times) for name, times in taken.items()}
    plain = taken["plain"]
    both = [one + other for one, other in zip(plain, taken.get("teacher", plain), strict=True)]
    return Times(
        medians["plain"],
        medians.get("warm"),
        medians.get("cold"),
        _ratio(taken.get("warm"), plain),
        _ratio(taken.get("cold"), both),
        logits_alone,
    )


def _ratio(times: list[float] | None, over: list[float]) -> float | None:
    return statistics.median(one / other for one, other in zip(times, over, strict=True)) if times else None


def _now(device: str) -> float:
    """The clock: on a CPU with one thread its CPU time, which excludes other processes."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def _samples(size: Size) -> Batch:
    drawn = torch.Generator().manual_seed(SEED)
    count = BATCHES * size.batch
    images = torch.randint(0, 256, (count, 3, size.side, size.side), dtype=torch.uint8, generator=drawn)
    return whole_split({"images": images}, torch.arange(count) % CLASSES).to(torch.device(size.device))


def _model(architecture: dict[str, Any], size: Size) -> Model:
    torch.manual_seed(SEED)
    return Model(
        ModelConfig(
            architecture=WideResNet.model_validate(architecture),
            input=ImageInput(channels=3, height=size.side, width=size.side),
            preprocessing=Preprocessing(scale=1 / 255, mean=[0.5] * 3, std=[0.25] * 3),
            classes=CLASSES,
        )
    ).to(size.device)


def _job(method: dict[str, Any], size: Size) -> JobSpec:
    """Train the earlier stages first, so that their modules exist."""
    recipe = {**method, "epochs": 1000, "batch_size": size.batch, "optimizer": {"kind": "sgd", "lr": 1e-3}}
    document = {"data": {"train": "x"}, "teacher": {"model": "teacher"}, "student": STUDENT, "recipe": recipe}
    return JobSpec.model_validate_json(json.dumps(document))


def _complain(message: str) -> None:
    raise RuntimeError(message)


HEADINGS = ("method", "plain, ms", "cached, ms", "ratio", "reached", "teacher runs, ms", "ratio", "reached")


def table(found: Sequence[tuple[str, Times]]) -> str:
    """As Markdown; targets are those of methods on logits alone."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(_cells(name, times) for name, times in found)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(name: str, times: Times) -> tuple[str, ...]:
    warm = _against(times.over_plain, WARM, times.logits_alone)
    cold = _against(times.over_both, COLD, times.logits_alone)
    return (name, _number(times.plain), _number(times.warm), *warm, _number(times.cold), *cold)


def _against(ratio: float | None, bound: float, has_target: bool) -> tuple[str, str]:
    if ratio is None:
        return "", ""
    return f"{ratio:.2f}", ("yes" if ratio <= bound else "NO") if has_target else ""


def _number(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the table into a page with `--write`."""
    options = _parser().parse_args(arguments)
    make_deterministic()
    torch.set_num_threads(options.threads)
    command = " ".join(["python -m bench.step", *(sys.argv[1:] if arguments is None else arguments)])
    size, begun, found = Size(options.side, options.batch, options.rounds, options.device), time.monotonic(), []
    for name, times in compare(size, options.methods):
        print(" | ".join(_cells(name, times)), flush=True)
        found.append((name, times))
    made = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, in {time.monotonic() - begun:.0f} s, on {system()}, "
        f"{size.device}, threads {options.threads}, rounds {size.rounds}; {', '.join(versions(('torch',)))}. Batches "
        f"of {size.batch} images of {size.side} x {size.side}; the student is a `wide-resnet` 10-1, the teacher 16-2."
    )
    print(f"\n{made}\n\n{table(found)}")
    if options.write:
        replace_part(options.write, "step", f"{made}\n\n{table(found)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.step", description="Times the steps of all methods.")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="of examples/methods.yaml; default: all")
    parser.add_argument("--rounds", type=int, default=Size.rounds, help="timed steps of everything, all in turn")
    parser.add_argument("--batch", type=int, default=Size.batch)
    parser.add_argument("--side", type=int, default=Size.side, help="of the images, in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=Size.device)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose table is replaced")
    return parser


if __name__ == "__main__":
    main()
