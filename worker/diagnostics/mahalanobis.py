"""Detection of outliers by the Mahalanobis distance of features to the classes' means (1807.03888).

n samples, L layers, D numbers of a layer's features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from app.recipe.diagnostics import Mahalanobis
from app.recipe.losses.taps import Tap
from worker.data.batches import Batch
from worker.data.randomness import derive_seed, generator
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, NotComputable
from worker.diagnostics.features import Features, batches_of, last_tap, layer_taps, reading_features
from worker.diagnostics.pictures import draw_panels, label
from worker.metrics.detection import Detection, detection
from worker.metrics.mahalanobis import ClassGaussians, PooledCovariance
from worker.students.model import Model
from worker.training.attacks import cross_entropy_with, fgsm, pgd, start_noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS, OF_DISTRIBUTION = 40, "held-out"
Images = Iterator[tuple[Tensor, Tensor]]
"""Raw samples on the device, a batch at a time, and their classes (n,) int64 on the CPU."""


class Layer(NamedTuple):
    """A layer of a model, and the normal distributions of its features."""

    tap: Tap
    gaussians: ClassGaussians


class Scored(NamedTuple):
    """Scores of one model; higher is nearer to the training samples."""

    layers: list[Layer]
    training: Tensor
    """(n, L) float64 of the training samples."""
    inside: Tensor
    """(n, L) float64 of the held-out samples."""
    outside: dict[str, Tensor]
    """(n, L) float64 of each set of outliers, by its name."""


class Combined(NamedTuple):
    """Scores of all layers together, (n,) float64, of held-out samples and of outliers."""

    inside: Tensor
    outside: Tensor


class MahalanobisAnalysis:
    """Figures of the student (`student`) and of every teacher, by its name: those of `Detection` for the combination of
    the layers, for each set of outliers (`data`, `fgsm`, `pgd`)."""

    def __init__(self, spec: Mahalanobis) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        if self._spec.attacks or self._spec.magnitude:
            inputs.images_to_attack()
        scored = {name: self._scored(model, inputs) for name, model in inputs.models.items()}
        combined = {
            name: {outliers: self._combined(one, outliers, inputs.seed) for outliers in one.outside}
            for name, one in scored.items()
        }
        figures = {
            name: {
                f"{outliers}_{figure}": value
                for outliers, found in of_model.items()
                for figure, value in detection(*found)._asdict().items()
            }
            for name, of_model in combined.items()
        }
        rows = [row for name, one in scored.items() for row in _rows(name, one)]
        draw = partial(draw_panels, combined, _draw)
        return DiagnosticResult(figures, rows, draw, [*_few(scored, inputs)])

    def _scored(self, model: Model, inputs: DiagnosticInputs) -> Scored:
        assert inputs.train is not None  # given wherever a job runs diagnostics
        training = partial(batches_of, model, inputs.train, inputs.device)
        held_out = partial(batches_of, model, inputs.judged.samples, inputs.device)
        taps = layer_taps(model, next(held_out())[0][:2]) if self._spec.layers == "all" else [last_tap(model)]
        with reading_features(model, taps) as features:
            layers = _fitted(features, taps, training(), model.config.outputs)
            score = partial(self._scores, features, layers, model)
            outside = {name: score(one) for name, one in self._outliers(model, inputs, held_out)}
            return Scored(layers, score(training()), score(held_out()), outside)

    def _outliers(
        self, model: Model, inputs: DiagnosticInputs, held_out: Callable[[], Images]
    ) -> Iterator[tuple[str, Images]]:
        for field, samples in inputs.further.items():
            chosen = _some(samples, self._spec.limit, derive_seed(inputs.seed, "mahalanobis", field))
            yield field, batches_of(model, chosen, inputs.device)
        for attack in self._spec.attacks:
            yield attack, self._attacked(attack, model, held_out(), inputs.seed)

    def _attacked(self, attack: str, model: Model, images: Images, seed: int) -> Images:
        spec, highest = self._spec, model.highest_pixel
        for number, (clean, labels) in enumerate(images):
            raised = cross_entropy_with(labels.to(clean.device))
            if attack == "fgsm":
                yield fgsm(model, clean, raised, spec.bound, highest), labels
            else:
                of_batch = derive_seed(seed, "mahalanobis", number)
                noise = start_noise(spec, clean.shape, highest, of_batch, clean.device)
                yield pgd(model, clean, raised, spec, highest, noise), labels

    def _scores(self, features: Features, layers: list[Layer], model: Model, batches: Images) -> Tensor:
        """(n, L) float64."""
        step = self._spec.magnitude * model.highest_pixel
        rows = []
        for samples, _ in batches:
            if step:
                columns = [_score_nearby(features, layer, index, samples, step) for index, layer in enumerate(layers)]
            else:
                columns = [
                    layer.gaussians.scores(one.cpu()) for layer, one in zip(layers, features(samples), strict=True)
                ]
            rows.append(torch.stack(columns, dim=1))
        return torch.cat(rows)

    def _combined(self, scored: Scored, outliers: str, seed: int) -> Combined:
        outside = scored.outside[outliers]
        if self._spec.combination == "logistic":
            return _by_regression(scored.inside, outside, seed)
        mean, deviation = scored.training.mean(0), scored.training.std(0, correction=0).clamp(min=1e-12)
        return Combined(*(((scores - mean) / deviation).sum(1) for scores in (scored.inside, outside)))


def _fitted(features: Features, taps: list[Tap], training: Images, classes: int) -> list[Layer]:
    moments: list[PooledCovariance] = []
    for samples, labels in training:
        found = [one.cpu() for one in features(samples)]
        moments = moments or [PooledCovariance(classes, one.shape[1]) for one in found]
        for of_layer, one in zip(moments, found, strict=True):
            of_layer.add(one, labels)
    for tap, of_layer in zip(taps, moments, strict=True):
        if not bool(of_layer.scatter.isfinite().all()):
            raise NotComputable(f"the features of {tap.path} are not finite")
    layers = [Layer(tap, of_layer.gaussians()) for tap, of_layer in zip(taps, moments, strict=True)]
    if not all(layer.gaussians.whitening.shape[1] for layer in layers):
        raise NotComputable("the features of the training samples do not differ within any class")
    return layers


def _score_nearby(features: Features, layer: Layer, index: int, samples: Tensor, step: float) -> Tensor:
    """Scores (n,) float64 of one layer at the samples moved by `step` along the sign of the scores' gradient."""

    def scores(images: Tensor) -> Tensor:
        return layer.gaussians.scores(features(images)[index].cpu())

    return scores(towards(scores, samples.float(), step))


def towards(scores: Callable[[Tensor], Tensor], samples: Tensor, step: float | Tensor) -> Tensor:
    """Floating `samples` (n, ...), each number moved by `step` so that the `scores` (n,) rise; where the gradient is 0,
    it is moved down."""
    leaf = samples.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(-scores(leaf).mean(), leaf)
    return samples - step * torch.where(gradient >= 0, 1.0, -1.0).to(samples.dtype)


def _by_regression(inside: Tensor, outside: Tensor, seed: int) -> Combined:
    """Decision values of a logistic regression fitted to one half of each, for the other halves."""
    from sklearn.linear_model import LogisticRegression  # it takes a second, and few jobs need it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    halves = [_halves(one, seed) for one in (inside, outside)]
    if any(not len(fitted) or not len(judged) for fitted, judged in halves):
        raise NotComputable("a logistic regression needs two held-out samples and two outliers at least")
    (inner, judged_inner), (outer, judged_outer) = halves
    labels = torch.cat([torch.ones(len(inner)), torch.zeros(len(outer))])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(torch.cat([inner, outer]).numpy(), labels.numpy())
    return Combined(*(torch.from_numpy(model.decision_function(one.numpy())) for one in (judged_inner, judged_outer)))


def _halves(scores: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(scores), generator=generator(seed, "mahalanobis", "halves"))
    return scores[order[: len(order) // 2]], scores[order[len(order) // 2 :]]


def _some(samples: Batch, limit: int | None, seed: int) -> Batch:
    if limit is None or samples.samples <= limit:
        return samples
    order = torch.randperm(samples.samples, generator=torch.Generator().manual_seed(seed))
    return samples.take_samples(order[:limit].sort().values.to(samples.storage_device))


def _rows(name: str, scored: Scored) -> Iterator[dict[str, Any]]:
    """By layer and set of outliers."""
    for index, layer in enumerate(scored.layers):
        width, rank = layer.gaussians.whitening.shape
        for outliers, outside in scored.outside.items():
            found: Detection = detection(scored.inside[:, index], outside[:, index])
            row = {"model": name, "layer": layer.tap.path, "width": width, "rank": rank, "outliers": outliers}
            yield row | {"samples": len(outside)} | found._asdict()


def _few(scored: Mapping[str, Scored], inputs: DiagnosticInputs) -> Iterator[str]:
    assert inputs.train is not None  # given wherever a job runs diagnostics
    count = inputs.train.samples
    for name, one in scored.items():
        widest = max(layer.gaussians.whitening.shape[0] for layer in one.layers)
        if count <= widest:
            found = f"{count} training samples for features of {widest} numbers"
            yield f"{name}: {found}: their covariance has no full rank, and its pseudo-inverse is used"


def _draw(axes: Axes, name: str, combined: Mapping[str, Combined]) -> None:
    """Histograms of the combined scores of held-out samples and of every set of outliers."""
    values = {OF_DISTRIBUTION: next(iter(combined.values())).inside}
    values |= {outliers: found.outside for outliers, found in combined.items()}
    whole = torch.cat([*values.values()])
    low, high = (float(each) for each in whole.quantile(torch.tensor([0.01, 1.0], dtype=whole.dtype)))
    for title, scores in values.items():
        axes.hist(
            scores.clamp(min=low).numpy(), bins=BINS, range=(low, high), density=True, histtype="step", label=title
        )
    axes.legend(fontsize=7, loc="upper left")
    label(axes, name, "score, cut at the lowest 1 %", "density")
