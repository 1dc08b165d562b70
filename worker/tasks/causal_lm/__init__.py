"""Language modelling: the next token at every position of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.model import ModelConfig, TextInput
from worker.data.batches import Batch
from worker.data.load_texts import load_running_text
from worker.data.running_text import PackingDir
from worker.data.task_data import TaskData
from worker.losses.tokens import TokenObjective
from worker.metrics import classification as metrics
from worker.students.decoding import next_logits
from worker.students.model import Model
from worker.tasks.base import Call, CountFlops, Figures, HeldOut, ReportInputs, Task
from worker.tasks.card import DecoderCard
from worker.tasks.causal_lm.continuations import continuations
from worker.tasks.causal_lm.evaluator import TokenEvaluator, first_logits, hidden_states_of
from worker.tasks.causal_lm.examiner import TokenExaminer
from worker.tasks.causal_lm.teacher_rows import teacher_rows
from worker.tasks.codebook import codebook_figures


class CausalLm(Task):
    """Targets (N, S) int64, the next tokens. Outputs are compared by rows of logits (n, V) float32, one per valid
    token."""

    name = "causal-lm"
    objective = TokenObjective
    predicts_tokens = True

    def __init__(self) -> None:
        self.card = DecoderCard("text-generation")

    def load(
        self,
        job: JobSpec,
        inputs: Mapping[str, Path],
        teachers: Mapping[str, ModelConfig],
        seed: int,
        packing: PackingDir | None = None,
    ) -> TaskData:
        if packing is None:
            raise ValueError("texts of a language model need a folder for packing")
        return load_running_text(job, inputs, teachers, seed, packing)

    def evaluator(
        self,
        job: JobSpec,
        held_out: HeldOut,
        live: Mapping[str, Callable[[], Model]],
        stored: Mapping[str, Callable[[], Model]],
        computed: Mapping[str, Tensor],
    ) -> TokenEvaluator:
        """An evaluator that runs the live teachers each time: loading their files would take too long. `computed`,
        which has outputs (N, C) float32, is not used."""
        return TokenEvaluator(job, held_out, list(live.values()))

    def examiner(self, job: JobSpec, data: TaskData, seed: int, *, whole: bool) -> TokenExaminer:
        return TokenExaminer(data, whole=whole)

    def sample_outputs(self, model: Model, held_out: Batch, most: int) -> Tensor:
        """Logits (n, V) float32 on the CPU."""
        return first_logits(model.eval(), held_out, most)

    def likeness(self, logits: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """`agreement`, the share with the same likeliest token, and `kl`, the mean KL(reference || logits) in nats, of
        logits (n, V) float32."""
        return {"agreement": metrics.agreement(logits, reference), "kl": metrics.divergence(logits, reference)}

    def tolerances(
        self, logits: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """The NLL differs by at most twice the largest difference of a logit, for logits (n, V) float32."""
        yield "nll", 2 * allowed

    def same_choice(self, logits: Tensor, live: Tensor) -> Tensor | None:
        """Share with the same likeliest token, a float64 scalar, for logits (n, V) float32."""
        return (logits.argmax(-1) == live.argmax(-1)).double().mean()

    def timed_call(self, model: Model) -> Call:
        """Prediction of the token after a sequence: logits (N, V) floating for token ids (N, S) int64."""
        return lambda tokens: next_logits(model, tokens)

    def flops(self, model: Model, sample: Tensor, count: CountFlops) -> int:
        """Operations for token ids (1, S) int64, including the last layer at every token, although logits are not
        computed for all."""
        with torch.no_grad():
            states = hidden_states_of(model, sample)
        return count(model.forward_hidden, sample) + 2 * sample.numel() * states.weight.numel()

    def graph_samples(self, held_out: Batch, batch: int) -> Batch:
        return held_out.between(0, 1)

    def report_figures(self, inputs: ReportInputs) -> Figures:
        """The vocabulary, the alignment with other tokens, the codebook, and continuations of held-out texts."""
        sample = inputs.student.config.input
        assert isinstance(sample, TextInput)
        alignment = {"alignment": dict(inputs.alignment)} if inputs.alignment else {}
        codebook = codebook_figures(inputs, lambda teacher: teacher_rows(teacher, inputs.samples))
        found = {"vocabulary": sample.vocabulary, **alignment, **({"codebook": codebook} if codebook else {})}
        return {**found, "continuations": continuations(inputs)}


TOKENS = CausalLm()
