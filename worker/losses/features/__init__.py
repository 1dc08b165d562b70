"""Loss terms on activations: one module per method; `activations` reads features, `adapters` has trainable layers.

A row of vectors (B, D), tokens (B, S, D) or maps (B, C, H, W) is one sample; D and C are its width. Features are cast
to at least float32; the teacher's are detached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.recipe.losses import CfcdLocal, LossSpec, MinedReconstruction
from app.recipe.losses import features as spec
from worker.losses.base import LossTerm
from worker.losses.builder import LossBuilder
from worker.losses.features.activation_boundary import ActivationBoundaryTerm
from worker.losses.features.attention_relation import AttentionRelationTerm
from worker.losses.features.hint import HintTerm
from worker.losses.features.inheritance import FeatureAutoencoderTerm, InheritanceExplorationTerm
from worker.losses.features.inp_former import InpFormerTerm
from worker.losses.features.lipschitz import LipschitzTerm
from worker.losses.features.local_mining import CfcdLocalTerm
from worker.losses.features.mi_alpha import MiAlphaTerm
from worker.losses.features.overhaul import OverhaulTerm
from worker.losses.features.pkd import PkdTerm
from worker.losses.features.rkd import RkdTerm

FEATURE_TERMS: dict[type[LossSpec], Callable[[Any, LossBuilder], LossTerm]] = {
    spec.Hint: HintTerm,
    spec.Rkd: RkdTerm,
    spec.AttentionRelation: AttentionRelationTerm,
    spec.Pkd: PkdTerm,
    spec.Overhaul: OverhaulTerm,
    spec.ActivationBoundary: ActivationBoundaryTerm,
    spec.Lipschitz: LipschitzTerm,
    spec.MiAlpha: MiAlphaTerm,
    spec.FeatureAutoencoder: FeatureAutoencoderTerm,
    spec.InheritanceExploration: InheritanceExplorationTerm,
    MinedReconstruction: InpFormerTerm,
    CfcdLocal: CfcdLocalTerm,
}
