"""How good a model is on held-out samples.

N samples, C classes. Metrics are computed in float64 on the CPU from float32 logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.plan import EVAL_BATCH
from app.recipe.task import CLASSIFICATION, Task
from worker.students.model import Model as StudentModel

Model = Callable[[Tensor], Tensor]


@torch.inference_mode()
def predict(model: StudentModel, samples: Tensor) -> Tensor:
    """Logits or numbers (N, C) on the CPU of raw `samples` (N, ...), in evaluation mode and full float32.

    TensorFloat-32 is off: its logits would differ from those of the exported file in the third digit.
    """
    was_training = model.training
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        logits = predict_with(model.eval(), samples)
    model.train(was_training)
    return logits


def predict_with(model: Model, samples: Tensor) -> Tensor:
    """Logits or numbers (N, C) on the CPU by any function of raw samples, a batch at a time."""
    return torch.cat([model(batch).float().cpu() for batch in torch.split(samples, EVAL_BATCH)])


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
