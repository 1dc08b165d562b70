"""Search for a student among the sub-networks of weight-shared networks (AutoDistil, arXiv 2201.12507)."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch

from app.recipe.methods.base import FIELD
from app.recipe.methods.supernet import Supernet
from app.recipe.plan import plan_training
from app.recipe.students.architectures import Shrink
from app.recipe.students.derived import derived_teacher
from app.recipe.students.shrink import in_sizes, kept_heads, kept_layers, resized_model, sub_networks, teacher_depth
from app.recipe.students.sub_spaces import SubNetwork
from worker.data.randomness import derive_seed
from worker.errors import UserError
from worker.limits import Subject, reading
from worker.methods.base import Latency, Method, Outcome
from worker.methods.supernet_search import SharedWeights, search
from worker.methods.supernet_step import SupernetState, SupernetStep
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.shrink import take_over
from worker.students.super_network import SuperNetwork
from worker.training.job_inputs import BUILDING_SECONDS, WHOLE_MACHINE
from worker.training.loop import Stage, Step
from worker.training.stages import open_teacher, student_taps
from worker.training.state import Learner, TrainState, fresh_learner, fresh_student


class SupernetMethod(Method[Supernet]):
    """See `Supernet`; the shared network of the first sub-space is the job's student, and each of the others a
    learner."""

    State = SupernetState

    def learners(self) -> dict[str, Learner]:
        found = {}
        for number, space in enumerate(self._networks[1:], start=2):
            config = resized_model(self.inputs.student.config, space[0])
            subject = Subject(f"a network of {FIELD}", "invalid_architecture", f"{FIELD}.spaces")
            with torch.random.fork_rng(devices=[]), reading(subject, WHOLE_MACHINE, BUILDING_SECONDS):
                model = fresh_student(config, derive_seed(self.inputs.seed, "sub-space", number))
            self._initialise(model, space[0])
            model.input_key = self.inputs.student.input_key
            model.to(next(self.inputs.student.parameters()).device)
            found[f"space-{number}"] = fresh_learner(self.inputs.job.recipe, model)
        return found

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Build the step; raises UserError (`invalid_job`) for losses with modules, and for limits that no sub-network
        keeps to."""
        if list(stage.objective.trained) or list(stage.objective.frozen):
            message = f"recipe.losses: {FIELD}: {self.spec.kind} allows no loss with modules; accepted: losses without"
            raise UserError("invalid_job", message, "recipe.losses")
        self._require_feasible()
        plan = plan_training(self.inputs.job.recipe, self.inputs.data.train.samples)
        return SupernetStep(self.spec.drawn, self._spaces, plan)

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        assert isinstance(state.method, SupernetState)
        rows = self.inputs.data.train.rows_per_sample
        counts = state.method.flops or [0] * len(self._networks)
        return {name: rows * count for name, count in zip(("student", *state.learners), counts, strict=True)}

    def conclude(self, stage: Stage, state: TrainState, latency: Latency) -> Outcome:
        """Search the student among all sub-networks, and keep the shared weights for later extraction."""
        job, teachers = self.inputs.job, self.inputs.teachers
        sources = {name: open_teacher(teachers[name], job, name).source for name in stage.objective.teachers}
        models = [state.evaluated, *(learner.evaluated for learner in state.learners.values())]
        weights = [SharedWeights(*pair) for pair in zip(self._spaces, models, strict=True)]
        return search(self.spec.search, weights, replace(stage, teachers=sources), self.inputs, latency)

    @cached_property
    def _networks(self) -> list[list[SubNetwork]]:
        return sub_networks(self.inputs.job, self._teacher.config.architecture)

    @cached_property
    def _spaces(self) -> list[SuperNetwork]:
        """The sub-networks of every sub-space."""
        student, taps = self.inputs.student.config, student_taps(self.inputs.job)
        return [SuperNetwork(resized_model(student, space[0]), space, taps) for space in self._networks]

    @property
    def _teacher(self) -> Model:
        """The teacher that the student is a smaller copy of."""
        name = derived_teacher(self.inputs.job)
        assert name is not None  # by the contract
        return self.inputs.teachers[name]

    def _initialise(self, model: Model, sizes: SubNetwork) -> None:
        """Copy the teacher's leading slices, if the student starts from them."""
        student, network = self.inputs.job.student, self._teacher.config.architecture
        assert isinstance(student, Shrink)  # by the contract
        if student.init == "teacher":
            wanted = in_sizes(student, sizes)
            take_over(model, self._teacher, kept_layers(wanted, teacher_depth(network)), kept_heads(wanted, network))

    def _require_feasible(self) -> None:
        """Raises UserError (`invalid_job`) for limits that no smallest sub-network keeps to."""
        limits, costs = self.spec.search, [network_cost(each.config_of(each.networks[-1])) for each in self._spaces]
        if not any(limits.keeps(cost.parameters, cost.flops) for cost in costs):
            least = " or ".join(f"{cost.parameters:,} weights and {cost.flops:,} operations" for cost in costs)
            param = f"{FIELD}.search"
            message = f"{param}: no sub-network keeps to the limits; accepted: at least {least}"
            raise UserError("invalid_job", message, param)
