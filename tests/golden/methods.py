"""The methods that this package knows, by their name in the vector files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.golden import (
    Case,
    adversarial,
    boundary,
    class_vectors,
    embeddings,
    features,
    kernels,
    labels,
    losses,
    meta,
    metrics,
    multi_label,
    mutual,
    optimizers,
    rollback,
)
from tests.golden.comparison import Comparison

METHODS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "kd_hinton": losses.kd,
    "nkd": losses.nkd,
    "dkd": losses.dkd,
    "dist": losses.dist,
    "bd_kd": losses.bd_kd,
    "kd_logits_matching": losses.logits_matching,
    "kd_three_levels": losses.three_levels,
    "llm_divergences": losses.divergences,
    "uskd": labels.uskd,
    "ferkd": labels.ferkd,
    "fkd_soft_labels": labels.fkd_soft_labels,
    "facial_kd_loss": labels.facial_kd_loss,
    "mld": multi_label.mld,
    "rkd": features.rkd,
    "ab": features.ab,
    "overhaul_ofd": features.overhaul,
    "london": features.london,
    "ie_kd": features.ie_kd,
    "mi_alpha": features.distiller,
    "autodistil_relation": features.autodistil,
    "bss": boundary.bss,
    "dml": mutual.dml,
    "dml_author_kl": mutual.author_kl,
    "metadistil": meta.metadistil,
    "rollback": rollback.rollback,
    "mtard": adversarial.mtard,
    "ntxent": embeddings.ntxent,
    "normface": class_vectors.normface,
    "unpg": class_vectors.unpg,
    "calibration": metrics.calibration,
    "adamp": optimizers.adamp,
    "sgdp": optimizers.sgdp,
    "sinkgd": optimizers.sinkgd,
    "swan": optimizers.swan,
    "nap": optimizers.nap,
    "normalized_lr_gd": optimizers.normalized_gd,
    "two_pass_softmax": kernels.two_pass_softmax,
}
