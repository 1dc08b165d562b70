"""How good a model is on held-out samples: what it answers, and the measures of its task.

N samples, C outputs. Metrics are computed in float64 on the CPU from float32 outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.job import EvaluationSpec
from app.recipe.plan import EVAL_BATCH
from app.recipe.tasks.task import CLASSIFICATION, EMBEDDING, Task
from worker.data.pairs import SCORE, TEXT
from worker.metrics import classification, embeddings, keypoints, regression
from worker.students.model import Model

Call = Callable[[Tensor], Tensor]
Metrics = dict[str, float]
LISTED_CLASSES = 1000
"""With more classes than this, the table of classes is left out."""


class MainMetric(NamedTuple):
    """What a student is chosen by."""

    name: str
    higher_is_better: bool
    tie_breaker: str | None = None
    """Decides between equals; lower is better."""
    stand_in: str | None = None
    """Takes its place where the samples to evaluate on do not give it."""

    def of(self, metrics: Metrics) -> str:
        """Its name, or that of what stands in for it."""
        return self.name if self.name in metrics or self.stand_in is None else self.stand_in

    def is_better(self, metrics: Metrics, than: Metrics) -> bool:
        """Whether one set of metrics is strictly better than another."""
        return self._rank(metrics) > self._rank(than)

    def _rank(self, metrics: Metrics) -> tuple[float, float]:
        value = metrics[self.of(metrics)]
        second = -metrics[self.tie_breaker] if self.tie_breaker else 0.0
        return value if self.higher_is_better else -value, second


BY_ACCURACY = MainMetric("accuracy", higher_is_better=True, tie_breaker="nll")
MAIN_METRICS: dict[Task, MainMetric] = {
    "image-classification": BY_ACCURACY,
    "text-classification": BY_ACCURACY,
    "regression": MainMetric("rmse", higher_is_better=False),
    "keypoints": MainMetric("nme", higher_is_better=False),
    EMBEDDING: MainMetric("spearman", higher_is_better=True, stand_in="mrr"),
    "causal-lm": MainMetric("perplexity", higher_is_better=False),
}
RECALL_AT = (1, 5, 10)
"""How many of the nearest texts are looked through."""


class ClassRow(NamedTuple):
    """One class in the table of classes."""

    number: int
    samples: int
    accuracy: float | None
    """Share of its samples that were recognised; none where it has no sample."""


class Evaluation(NamedTuple):
    """What was found out about outputs."""

    metrics: Metrics
    classes: list[ClassRow] | None = None
    """For a classifier of at most LISTED_CLASSES classes."""


@torch.inference_mode()
def predict(model: Model, samples: Tensor) -> Tensor:
    """Outputs (N, C) on the CPU for raw `samples` (N, …), in evaluation mode and full float32.

    TensorFloat-32 is off: its outputs would differ from those of the exported file in the third digit.
    """
    was_training = model.training
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        outputs = predict_with(model.eval(), samples)
    model.train(was_training)
    return outputs


def predict_with(call: Call, samples: Tensor) -> Tensor:
    """Outputs (N, C) on the CPU by any function of raw samples, a batch at a time."""
    return torch.cat([call(batch).float().cpu() for batch in torch.split(samples, EVAL_BATCH)])


def together(said: list[Tensor], weights: list[float], task: Task) -> Tensor:
    """What several teachers say on average (N, C), by their relative weights: log-probabilities of the mixture for
    classes, else the mean. A single teacher's answer is left as it is."""
    if len(said) == 1:
        return said[0]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    answers = torch.stack(said).double()
    if task in CLASSIFICATION:
        return torch.logsumexp(answers.log_softmax(-1) + shares.log().view(-1, 1, 1), dim=0).float()
    return (answers * shares.view(-1, 1, 1)).sum(0).float()


def judge(
    task: Task, outputs: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
) -> Evaluation:
    """Hold `outputs` (N, C) against `targets`, (N,) int64 classes or (N, C) numbers, and the teacher's outputs (N, C).
    For pairs of texts, two rows each, the targets are those of `worker.data.pairs`, and the teacher may be wider.

    A classifier: `accuracy`, `nll` (nats), `ece`, `adaptive_ece`, `brier`; likeness to the teacher: `agreement`, `kl`.
    A regression: `mse`, `rmse`, `mae`, `r2`, `pearson`, the last two as means over the outputs. Keypoints: `nme`,
    `failure_rate`, `auc`. Of both, likeness is `teacher_rmse`, in the unit of the targets. Vectors of pairs: `spearman`
    and `pearson` of cosines with scores; without scores `mrr` and `recall_at_<k>` of the second text, looked for among
    all second ones by the first; likeness: `teacher_correlation` of cosines, `teacher_cosine` where widths are equal.
    Raises UserError (`invalid_data`) for keypoints without a length to divide their error by.
    """
    targets = targets.cpu()
    if task in CLASSIFICATION:
        return _judge_classes(outputs, targets, options, teacher)
    if task == EMBEDDING:
        return Evaluation(_floats(_judge_vectors(outputs, targets) | _likeness(outputs, teacher)))
    found = _judge_points(outputs, targets, options) if task == "keypoints" else _judge_numbers(outputs, targets)
    if teacher is not None:
        found["teacher_rmse"] = regression.root_mean_squared_error(outputs, teacher)
    return Evaluation(_floats(found))


def _judge_classes(logits: Tensor, labels: Tensor, options: EvaluationSpec, teacher: Tensor | None) -> Evaluation:
    found = {
        "accuracy": classification.accuracy(logits, labels),
        "nll": classification.negative_log_likelihood(logits, labels),
        "ece": classification.calibration_error(logits, labels, options.ece_bins),
        "adaptive_ece": classification.adaptive_calibration_error(logits, labels, options.ece_bins),
        "brier": classification.brier_score(logits, labels),
    }
    if teacher is not None:
        found["agreement"] = classification.agreement(logits, teacher)
        found["kl"] = classification.divergence(logits, teacher)
    table = _class_table(logits, labels) if logits.shape[-1] <= LISTED_CLASSES else None
    return Evaluation(_floats(found), table)


def _judge_numbers(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {
        "mse": regression.mean_squared_error(outputs, targets),
        "rmse": regression.root_mean_squared_error(outputs, targets),
        "mae": regression.mean_absolute_error(outputs, targets),
        "r2": regression.r_squared(outputs, targets).mean(),
        "pearson": regression.pearson_correlation(outputs, targets).mean(),
    }


def _judge_points(outputs: Tensor, targets: Tensor, options: EvaluationSpec) -> dict[str, Tensor]:
    errors = keypoints.sample_errors(outputs, targets, _lengths(targets, options))
    return {
        "nme": keypoints.normalised_mean_error(errors),
        "failure_rate": keypoints.failure_rate(errors),
        "auc": keypoints.area_under_curve(errors),
    }


def _judge_vectors(vectors: Tensor, targets: Tensor) -> dict[str, Tensor]:
    scores = targets[0::2, SCORE]
    if not bool(scores.isnan().any()):
        found = embeddings.pair_cosines(vectors)
        return {
            "spearman": embeddings.spearman_correlation(found, scores),
            "pearson": regression.pearson_correlation(found, scores),
        }
    places = embeddings.retrieval_ranks(vectors, targets[:, TEXT])
    recalls = {f"recall_at_{k}": embeddings.recall_at(places, k) for k in RECALL_AT}
    return {"mrr": embeddings.mean_reciprocal_rank(places), **recalls}


def _likeness(vectors: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
    if teacher is None:
        return {}
    found = {"teacher_correlation": embeddings.teacher_correlation(vectors, teacher)}
    same = vectors.shape == teacher.shape
    return found | ({"teacher_cosine": embeddings.teacher_cosine(vectors, teacher)} if same else {})


def _lengths(targets: Tensor, options: EvaluationSpec) -> Tensor:
    """A single point has no size of its own: its error stays in the unit of the targets."""
    if targets.shape[-1] == 2:
        return torch.ones(len(targets), dtype=torch.float64)
    first_second = options.nme_points
    return keypoints.normalisers(targets, (first_second[0], first_second[1]) if first_second else None)


def _floats(found: dict[str, Tensor]) -> Metrics:
    return {name: float(value) for name, value in found.items()}


def _class_table(logits: Tensor, labels: Tensor) -> list[ClassRow]:
    samples, recognised = (counts.tolist() for counts in classification.class_counts(logits, labels))
    pairs = enumerate(zip(samples, recognised, strict=True))
    return [ClassRow(number, count, hits / count if count else None) for number, (count, hits) in pairs]
