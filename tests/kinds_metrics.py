"""Metrics that the reports of the jobs in `tests/test_every_kind.py` must have."""

from __future__ import annotations

from typing import Any

from app.recipe.tasks.multi_label import MANY_LABELS

METRICS = {
    "image-classification": {"accuracy", "nll", "ece", "brier"},
    "text-classification": {"accuracy", "nll", "ece", "brier"},
    "token-classification": {"entity_f1", "entity_precision", "entity_recall", "accuracy", "nll"},
    "multi-label-classification": {"map", "micro_f1", "macro_f1", "precision_at_1", "precision_at_3", "ece", "nll"},
    "regression": {"rmse", "mae", "r2"},
    "keypoints": {"nme", "failure_rate", "auc"},
    "embedding": {"pearson", "spearman"},
    "image-embedding": {"map_at_r", "map", "recall_at_1", "auc", "tar_at_far_1e-2", "class_mean_accuracy"},
    "self-supervised": {"linear_accuracy", "knn_accuracy", "bayes_accuracy", "view_recall_at_1", "view_loss"},
    "anomaly-detection": {"image_auroc", "pixel_auroc", "pro", "reconstruction_cosine"},
    "causal-lm": {"perplexity", "nll", "accuracy"},
}
"""What a report must tell of the student, by task."""
LISTED = {"precision_at_1", "precision_at_5", "nll"}
"""The same of labels that are too many for a number each."""
RANKED = {"mrr", "recall_at_10", "ndcg_at_10"}
"""The same of queries with candidates."""
VERIFIED = {"auc", "tar_at_far_1e-2", "tar_at_far_1e-3"}
"""The same of pairs of images."""


def expected_metrics(job: dict[str, Any]) -> set[str]:
    """Metrics of the student in the report of a job, as it is stored."""
    data = job["data"]
    if data.get("candidate_columns"):
        return RANKED
    if data.get("second_key"):
        return VERIFIED
    return LISTED if (data["classes"] or 0) > MANY_LABELS else METRICS[job["task"]]
