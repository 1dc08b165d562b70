"""No training: the student is exported as it is initialised."""

from __future__ import annotations

from app.recipe.methods.export_only import LARGEST_DIFFERENCE, ExportOnly
from app.recipe.plan import EVAL_BATCH
from app.recipe.students.conversion import Convert
from app.recipe.students.derived import derived_teacher
from worker.errors import UserError
from worker.methods.base import Latency, Method, Outcome
from worker.students.model import Model
from worker.tasks.base import Figures
from worker.tasks.prediction import predict
from worker.training.loop import Stage, Step, take_step
from worker.training.state import TrainState


class ExportOnlyMethod(Method[ExportOnly]):
    """See `ExportOnly`."""

    def step(self, stage: Stage, state: TrainState) -> Step:
        return take_step

    def conclude(self, stage: Stage, state: TrainState, latency: Latency) -> Outcome:
        """Compare a converted student with its teacher; raises UserError if they differ."""
        job, name = self.inputs.job, derived_teacher(self.inputs.job)
        if name is None or not isinstance(job.student, Convert):
            return Outcome()
        found = self._difference(state.student, self.inputs.teachers[name])
        if not found["relative_difference"] <= LARGEST_DIFFERENCE:
            message = f"the outputs of student and teacher differ by {found['largest_difference']:.1e}"
            raise UserError("conversion_differs", f"{message}; accepted: a teacher with smaller weights", "student")
        return Outcome(figures={"conversion": found})

    def _difference(self, student: Model, teacher: Model) -> Figures:
        """The largest difference of outputs on held-out samples, in units of the outputs and of the largest one."""
        probe = self.inputs.data.eval.between(0, EVAL_BATCH)
        ours, theirs = (predict(model, probe.inputs[model.input_key]) for model in (student, teacher))
        largest, scale = float((ours - theirs).abs().max()), max(float(theirs.abs().max()), 1e-30)
        return {"samples": len(ours), "largest_difference": largest, "relative_difference": largest / scale}
