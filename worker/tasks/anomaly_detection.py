"""Anomaly detection in images: a score of each, and a map of where it differs from the normal images of training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.data.sources import Data, ImageData
from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.plan import split_counts
from app.recipe.students.architectures import InpFormerNetwork
from app.recipe.students.derived import network_of
from app.recipe.students.model import ModelConfig
from app.recipe.tasks.anomaly_detection import NORMAL_CLASSES
from worker.data.batches import Batch, whole_split
from worker.data.formats.column_readers import OptionalClassColumns, is_unlabelled
from worker.data.formats.columns import Samples
from worker.data.formats.faults import invalid
from worker.data.holdout import hold_out_any
from worker.data.identities import identities
from worker.data.task_data import Halves, Targets, TaskData
from worker.metrics import anomalies as metrics
from worker.metrics.regression import root_mean_squared_error
from worker.tasks.base import Evaluation, Metrics
from worker.tasks.card import AnomalyCard
from worker.tasks.samples import SampleTask

NO_ANOMALIES = (
    "the evaluation samples have no anomalous image: they are evaluated by reconstruction_cosine alone, which does not "
    "tell how well anomalies are found"
)


class AnomalyDetection(SampleTask):
    """Outputs (N, 1 + S^2) floating: the score of an image, and its map of S rows.

    Targets (N,) int64 are 0 for normal and 1 for anomalous images, or in evaluation masks (N, H, W) uint8, 1 at
    anomalous pixels. All images to train on are normal.
    """

    name = "anomaly-detection"

    def __init__(self) -> None:
        self.columns, self.card = OptionalClassColumns(self.name), AnomalyCard()

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        labels = _labels(job.data, samples)
        found = {param: _with_masks(labels[param], one, job.data, param) for param, one in samples.items()}
        count = int(is_anomalous(found["data.train"]).sum())
        if count == len(found["data.train"]):
            raise invalid("all images of data.train are anomalous; accepted: some normal ones", "data.train")
        use = "evaluated on" if "data.eval" not in found else "left out of training"
        notes = [f"{count} images of data.train are anomalous, and are {use}"] if count else []
        return Targets(found, notes=notes)

    def split(self, train: Batch, data: Data, seed: int) -> tuple[Tensor, Tensor]:
        """A share of the normal images, and all anomalous ones, are held out."""
        anomalous = is_anomalous(train.targets)
        normal = (~anomalous).nonzero().flatten()
        kept, held = hold_out_any(len(normal), split_counts(data, len(normal))[1], seed)
        return normal[kept], torch.cat([normal[held], anomalous.nonzero().flatten()]).sort().values

    def settle(self, train: Batch, evaluation: Batch, targets: Targets) -> Halves:
        """Anomalous images are left out of training. Raises UserError (`invalid_data`) without a normal image to
        evaluate on."""
        normal = train.take((~is_anomalous(train.targets)).nonzero().flatten())
        judged = is_anomalous(evaluation.targets)
        if bool(judged.all()):
            param = "data.eval" if "data.eval" in targets.by_file else "data.train"
            raise invalid(f"{param} has no normal image to evaluate on; accepted: one or more", param)
        trained = whole_split(normal.inputs, torch.zeros(len(normal), dtype=torch.int64))
        evaluated = {"normal": int((~judged).sum()), "anomalous": int(judged.sum())}
        figures = {"trained": len(normal), "left_out": len(train) - len(normal), "evaluated": evaluated}
        return Halves(trained, evaluation, {"anomalies": figures})

    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        network = network_of(job, teachers)
        assert isinstance(network, InpFormerNetwork)  # the contract refuses others
        return {"targets": network.outputs}

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        return [] if bool(is_anomalous(evaluation).any()) else [NO_ANOMALIES]

    def evaluate(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """`reconstruction_cosine`, the mean cosine of features of normal images with their reconstructions; if there
        are anomalous images `image_auroc`, and with masks `pixel_auroc` and `pro` of maps (see
        `worker.metrics.anomalies`), resized to the masks' size."""
        targets, maps = targets.cpu(), maps_of(outputs)
        anomalous = is_anomalous(targets)
        found = {"reconstruction_cosine": 1.0 - float(maps[~anomalous].double().mean())}
        if bool(anomalous.any()):
            found["image_auroc"] = metrics.auroc(outputs[:, 0], anomalous)
            found |= _of_pixels(maps, targets.bool()) if targets.ndim == 3 else {}
        return Evaluation(found)

    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """`rmse` between outputs (N, 1 + S^2) float32."""
        return {"rmse": root_mean_squared_error(outputs, reference)}

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """The same score for all images and pixels."""
        outputs = torch.zeros(len(held_out), data.model.outputs)
        return self.evaluate(outputs, held_out.targets, job.evaluation).metrics, "a constant score"

    def tolerances(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """Of outputs (N, 1 + S^2) float32; areas under curves jump where two scores change places."""
        yield "reconstruction_cosine", allowed


def is_anomalous(targets: Tensor) -> Tensor:
    """Which images (N,) bool are anomalous, by targets of any form (see `AnomalyDetection`)."""
    return targets.flatten(1).bool().any(1) if targets.ndim == 3 else targets != 0


def maps_of(outputs: Tensor) -> Tensor:
    """Maps (N, S, S) of outputs (N, 1 + S^2)."""
    side = math.isqrt(outputs.shape[1] - 1)
    return outputs[:, 1:].reshape(-1, side, side)


def _of_pixels(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Metrics of maps (N, S, S) floating with masks (N, H, W) bool."""
    maps, masks = metrics.some_images(maps, masks)
    if not bool(masks.any()) or bool(masks.all()):
        return {}
    values = F.interpolate(maps.unsqueeze(1), masks.shape[1:], mode="bilinear", align_corners=False).squeeze(1)
    return {"pixel_auroc": metrics.auroc(values, masks), "pro": metrics.per_region_overlap(values, masks)}


def _labels(data: Data, samples: Mapping[str, Samples]) -> dict[str, Tensor]:
    """By file 1 for anomalous images and 0 for others (N,) int64; images of a file without labels are normal."""
    found = identities({param: one for param, one in samples.items() if not is_unlabelled(one)})
    names, normal = found.names or (), data.normal_classes or NORMAL_CLASSES
    unknown = [name for name in data.normal_classes or () if name not in names]
    if unknown:
        found_name = f"no image has the class {unknown[0]!r}"
        raise invalid(f"{found_name}; accepted: some of {_listed(names)}", "data.normal_classes")
    if names and not set(names) & set(normal):
        found_names = f"the classes are {_listed(names)}, and none of them is called {_listed(normal)}"
        raise invalid(f"{found_names}; accepted: data.normal_classes, which names those of normal images", "data.train")
    marked = torch.tensor([name not in normal for name in names], dtype=torch.int64)
    unlabelled = {param: torch.zeros(len(one.labels), dtype=torch.int64) for param, one in samples.items()}
    return unlabelled | {param: marked[numbers] for param, numbers in found.by_file.items()}


def _listed(names: Any) -> str:
    shown = [repr(name) for name in list(names)[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _with_masks(labels: Tensor, samples: Samples, data: Data, param: str) -> Tensor:
    """The labels (N,), or the masks of a file that has them; raises UserError (`invalid_data`) if they contradict each
    other, or the images' size."""
    if samples.masks is None:
        return labels
    field = "data.mask_key" if isinstance(data, ImageData) else "data.mask_column"
    masks, (height, width) = torch.from_numpy(samples.masks), samples.inputs.shape[2:]  # type: ignore[union-attr]
    if masks.shape[1:] != (height, width):
        found = f"masks of {param} have {masks.shape[1]} x {masks.shape[2]} pixels, its images {height} x {width}"
        raise invalid(f"{found}; accepted: masks of the images' size", field)
    marked = masks.flatten(1).any(1)
    if not is_unlabelled(samples) and bool((wrong := marked != (labels != 0)).any()):
        index = int(wrong.int().argmax())
        pair = ("anomalous", "no anomalous pixel") if labels[index] else ("normal", "anomalous pixels")
        raise invalid(f"image {index} of {param} is {pair[0]}, and its mask has {pair[1]}", field)
    return masks.to(torch.uint8)


ANOMALIES = AnomalyDetection()
