"""The loss terms of a recipe. Each has one class of the same kind in `worker/losses`.

Notation of the equations: y the label, C the number of classes, p the teacher's and q the student's probabilities,
softmax(logits / T) over the classes; T is `temperature`, and 1 for terms without one. A loss is the mean over the rows.
In the task `embedding` every text is a row, and a pair is two; in `self-supervised` every view of an image is one; in
`multi-label-classification` p and q are sigmoids, one for each class; in `token-classification` a word is a row, but of
losses on features a text is.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from app.recipe.losses.base import LossSpec, Softened, Temperature
from app.recipe.losses.class_vectors import Cfcd, CfcdLocal, NormFace, Unpg
from app.recipe.losses.classification import Aldr, AnyLoss, BinaryLoss, CompSum, EnsLoss, L2Svm, LabelLoss, Ldr, ZLoss
from app.recipe.losses.embeddings import (
    Contrastive,
    EmbeddingDistance,
    PairScore,
    SimilarityMatrix,
)
from app.recipe.losses.features import (
    ActivationBoundary,
    AttentionRelation,
    FeatureAutoencoder,
    Hint,
    InheritanceExploration,
    Lipschitz,
    MiAlpha,
    Overhaul,
    Pkd,
    Rkd,
)
from app.recipe.losses.labels import (
    Ferkd,
    Uskd,
)
from app.recipe.losses.logits import (
    Akl,
    BdKd,
    CrossEntropy,
    Dist,
    Dkd,
    Jsd,
    Kd,
    KdMse,
    KdPt,
    KdRel,
    KdSim,
    KdTopk,
    LogitMse,
    Nkd,
    ReverseKl,
    SkewKl,
    SkewReverseKl,
    Tvd,
)
from app.recipe.losses.multi_label import (
    BinaryCrossEntropy,
    BinaryKd,
)
from app.recipe.losses.numbers import (
    Assistive,
    Mse,
    SmoothL1,
    Wing,
)
from app.recipe.losses.reconstruction import FeatureReconstruction, MinedReconstruction, PrototypeCoherence
from app.recipe.losses.retrieval import (
    Dexml,
    LgAnna,
    Mw,
    UniMe,
)
from app.recipe.losses.views import (
    NtXent,
)
from app.recipe.losses.vocabularies import (
    Uld,
)

__all__ = [
    "LOSSES",
    "ActivationBoundary",
    "Akl",
    "Aldr",
    "AnyLoss",
    "Assistive",
    "AttentionRelation",
    "BdKd",
    "BinaryCrossEntropy",
    "BinaryKd",
    "BinaryLoss",
    "Cfcd",
    "CfcdLocal",
    "CompSum",
    "Contrastive",
    "CrossEntropy",
    "Dexml",
    "Dist",
    "Dkd",
    "EmbeddingDistance",
    "EnsLoss",
    "FeatureAutoencoder",
    "FeatureReconstruction",
    "Ferkd",
    "Hint",
    "InheritanceExploration",
    "Jsd",
    "Kd",
    "KdMse",
    "KdPt",
    "KdRel",
    "KdSim",
    "KdTopk",
    "L2Svm",
    "LabelLoss",
    "Ldr",
    "LgAnna",
    "Lipschitz",
    "LogitMse",
    "Loss",
    "LossSpec",
    "MiAlpha",
    "MinedReconstruction",
    "Mse",
    "Mw",
    "Nkd",
    "NormFace",
    "NtXent",
    "Overhaul",
    "PairScore",
    "Pkd",
    "PrototypeCoherence",
    "ReverseKl",
    "Rkd",
    "SimilarityMatrix",
    "SkewKl",
    "SkewReverseKl",
    "SmoothL1",
    "Softened",
    "Temperature",
    "Tvd",
    "Uld",
    "UniMe",
    "Unpg",
    "Uskd",
    "Wing",
    "ZLoss",
]

Loss = Annotated[
    CrossEntropy
    | Kd
    | Nkd
    | LogitMse
    | Dkd
    | Dist
    | BdKd
    | ReverseKl
    | Jsd
    | SkewKl
    | SkewReverseKl
    | Tvd
    | Akl
    | Uld
    | KdMse
    | KdPt
    | KdSim
    | KdTopk
    | KdRel
    | Uskd
    | Ferkd
    | ZLoss
    | CompSum
    | Ldr
    | Aldr
    | L2Svm
    | AnyLoss
    | EnsLoss
    | BinaryCrossEntropy
    | BinaryKd
    | Hint
    | Rkd
    | AttentionRelation
    | Pkd
    | Overhaul
    | ActivationBoundary
    | Lipschitz
    | MiAlpha
    | FeatureAutoencoder
    | InheritanceExploration
    | MinedReconstruction
    | FeatureReconstruction
    | PrototypeCoherence
    | Mse
    | SmoothL1
    | Wing
    | Assistive
    | EmbeddingDistance
    | SimilarityMatrix
    | Contrastive
    | PairScore
    | Mw
    | UniMe
    | LgAnna
    | Dexml
    | NormFace
    | Unpg
    | Cfcd
    | CfcdLocal
    | NtXent,
    Field(discriminator="kind"),
]
LOSSES: tuple[type[LossSpec], ...] = get_args(get_args(Loss)[0])
"""All kinds."""
