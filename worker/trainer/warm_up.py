"""Warm-up before the first step: imports, thread pools, lazily loaded kernels."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable

import torch

from app.recipe.data.sources import ImageData
from app.recipe.job import JobSpec, Recipe
from app.recipe.losses import CrossEntropy
from app.recipe.optimizers import AdamW
from app.recipe.plan import plan_training
from app.recipe.students.architectures import CifarResNet
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.data.batches import Batches, whole_split
from worker.machine import make_deterministic
from worker.tasks import task_for
from worker.trainer import run  # noqa: F401  # it imports all modules that a job needs
from worker.training.loop import set_rate, take_step
from worker.training.peak import peak_of
from worker.training.stages import begin_stage, build_stages
from worker.training.state import fresh_student, initial_state

EXPORT_IMPORTS = (
    "onnxruntime",
    "onnxscript",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib",
    "torch.export._trace",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)
"""Modules that the first export imports, in steps of at most 0.4 s: in total 1.6 s and 130 MB. Some names are
private to torch; if one does not exist, the export imports its successor itself."""


def warm_up() -> None:
    """Take one step of a tiny job on the CPU, and measure the CPU's rate.

    CUDA is not initialised, as a spare must not hold GPU memory.
    """
    make_deterministic()
    recipe = Recipe(losses=[CrossEntropy()], optimizer=AdamW(), epochs=1, batch_size=2)
    student = CifarResNet(depth=8, width=1)
    model = ModelConfig(
        architecture=student,
        input=ImageInput(channels=1, height=8, width=8),
        preprocessing=Preprocessing(mean=[0.0], std=[1.0]),
        classes=2,
    )
    job = JobSpec(data=ImageData(train="x"), student=student, recipe=recipe)
    samples = whole_split({"images": torch.zeros(2, 1, 8, 8)}, torch.tensor([0, 1]))
    state = initial_state(recipe, fresh_student(model, 0))
    [stage] = build_stages(task_for(job.task), job, plan_training(recipe, 2), Batches(samples, 2, 0), state, {}, 0)
    begin_stage(stage, state)
    set_rate(stage, state)
    take_step(stage, state, stage.step_inputs(0))
    for threads in sorted({1, torch.get_num_threads()}):  # the options of `choose_threads`
        torch.set_num_threads(threads)
        peak_of(torch.device("cpu"), recipe.precision)


def get_warmer(idle: Callable[[], bool]) -> None:
    """Import modules for the export, one by one while `idle` returns true before each."""
    for name in EXPORT_IMPORTS:
        if not idle():
            return
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
