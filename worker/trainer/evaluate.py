"""How good a model is on held-out samples.

N samples, C classes. Metrics are computed in float64 on the CPU from float32 logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.plan import EVAL_BATCH
from worker.students.classifier import Classifier

Model = Callable[[Tensor], Tensor]


@torch.inference_mode()
def predict(model: Classifier, images: Tensor) -> Tensor:
    """Logits (N, C) on the CPU of raw `images` (N, C, H, W), in evaluation mode and full float32.

    TensorFloat-32 is off: its logits would differ from those of the exported file in the third digit.
    """
    was_training = model.training
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        logits = predict_with(model.eval(), images)
    model.train(was_training)
    return logits


def predict_with(model: Model, images: Tensor) -> Tensor:
    """Logits (N, C) on the CPU by any function of raw images, a batch at a time."""
    return torch.cat([model(batch).float().cpu() for batch in torch.split(images, EVAL_BATCH)])


def judge(logits: Tensor, labels: Tensor, ece_bins: int, teacher: Tensor | None = None) -> dict[str, float]:
    """`accuracy`, `nll` (nats) and `ece`; with the teacher's logits (N, C) also `agreement` and `kl`.

    agreement: share of samples on which both sides' first choice is the same. kl: mean KL(teacher || student), in nats.
    """
    log_p = F.log_softmax(logits.double(), dim=-1)
    labels = labels.cpu()
    found = {
        "accuracy": (log_p.argmax(-1) == labels).double().mean(),
        "nll": F.nll_loss(log_p, labels),
        "ece": calibration_error(log_p, labels, ece_bins),
    }
    if teacher is not None:
        log_t = F.log_softmax(teacher.double(), dim=-1)
        found["agreement"] = (log_p.argmax(-1) == log_t.argmax(-1)).double().mean()
        found["kl"] = F.kl_div(log_p, log_t, reduction="batchmean", log_target=True)
    return {name: float(value) for name, value in found.items()}


def calibration_error(log_p: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Expected calibration error (1706.04599): confidence against accuracy over `bins` equal widths, (lower, upper]."""
    log_confidence, choice = log_p.max(-1)
    confidence = log_confidence.exp()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, (choice == labels).double() - confidence)
    return gap.abs().sum() / len(labels)
