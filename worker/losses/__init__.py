"""Loss terms, one module per family, and the objective that weighs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from app.recipe import losses as spec
from app.recipe.losses import LabelLoss, LossSpec
from worker.errors import UserError
from worker.losses.anyloss import AnyLossTerm
from worker.losses.assistive import AssistiveTerm
from worker.losses.base import LossTerm
from worker.losses.builder import LossBuilder
from worker.losses.class_vectors import CfcdTerm, NormFaceTerm
from worker.losses.coded import CodedCrossEntropyTerm, CodedKdTerm
from worker.losses.comp_sum import CompSumTerm
from worker.losses.cross_entropy import CrossEntropyTerm
from worker.losses.dexml import DexmlTerm
from worker.losses.dist import DistTerm
from worker.losses.divergences import AklTerm, DivergenceTerm, KdMseTerm
from worker.losses.embeddings import ContrastiveTerm, EmbeddingDistanceTerm, PairScoreTerm, SimilarityMatrixTerm
from worker.losses.ensloss import EnsLossTerm
from worker.losses.features import FEATURE_TERMS
from worker.losses.features.inp_former import FeatureReconstructionTerm, PrototypeCoherenceTerm
from worker.losses.ferkd import FerkdTerm
from worker.losses.ldr import AldrTerm, LdrTerm
from worker.losses.multi_label import BinaryCrossEntropyTerm, BinaryKdTerm
from worker.losses.regression import MseTerm, SmoothL1Term, WingTerm
from worker.losses.retrieval import LgAnnaTerm, MwTerm, UniMeTerm
from worker.losses.spherical import ZLossTerm
from worker.losses.svm import L2SvmTerm
from worker.losses.three_levels import KdPtTerm, KdRelTerm, KdSimTerm, KdTopkTerm
from worker.losses.unpg import UnpgTerm
from worker.losses.uskd import UskdTerm
from worker.losses.views import NtXentTerm
from worker.losses.vocabularies import UldTerm

TERMS: dict[type[LossSpec], Callable[[Any], LossTerm]] = {
    spec.CrossEntropy: CrossEntropyTerm,
    spec.Kd: DivergenceTerm,
    spec.Nkd: DivergenceTerm,
    spec.LogitMse: DivergenceTerm,
    spec.Dkd: DivergenceTerm,
    spec.Dist: DistTerm,
    spec.BdKd: DivergenceTerm,
    spec.ReverseKl: DivergenceTerm,
    spec.Jsd: DivergenceTerm,
    spec.SkewKl: DivergenceTerm,
    spec.SkewReverseKl: DivergenceTerm,
    spec.Tvd: DivergenceTerm,
    spec.Akl: AklTerm,
    spec.Uld: UldTerm,
    spec.KdMse: KdMseTerm,
    spec.KdPt: KdPtTerm,
    spec.KdSim: KdSimTerm,
    spec.KdTopk: KdTopkTerm,
    spec.KdRel: KdRelTerm,
    spec.Ferkd: FerkdTerm,
    spec.ZLoss: ZLossTerm,
    spec.CompSum: CompSumTerm,
    spec.Ldr: LdrTerm,
    spec.BinaryCrossEntropy: BinaryCrossEntropyTerm,
    spec.BinaryKd: BinaryKdTerm,
    spec.Mse: MseTerm,
    spec.SmoothL1: SmoothL1Term,
    spec.Wing: WingTerm,
    spec.Assistive: AssistiveTerm,
    spec.SimilarityMatrix: SimilarityMatrixTerm,
    spec.Contrastive: ContrastiveTerm,
    spec.PairScore: PairScoreTerm,
    spec.Mw: MwTerm,
    spec.UniMe: UniMeTerm,
    spec.LgAnna: LgAnnaTerm,
    spec.Dexml: DexmlTerm,
}
"""Terms that need outputs alone."""


BUILT: dict[type[LossSpec], Callable[[Any, LossBuilder], LossTerm]] = {
    spec.Uskd: UskdTerm,
    spec.Aldr: AldrTerm,
    spec.L2Svm: L2SvmTerm,
    spec.AnyLoss: AnyLossTerm,
    spec.EnsLoss: EnsLossTerm,
    spec.EmbeddingDistance: EmbeddingDistanceTerm,
    spec.NormFace: NormFaceTerm,
    spec.Unpg: UnpgTerm,
    spec.Cfcd: CfcdTerm,
    spec.NtXent: NtXentTerm,
    spec.FeatureReconstruction: FeatureReconstructionTerm,
    spec.PrototypeCoherence: PrototypeCoherenceTerm,
    **FEATURE_TERMS,
}
"""Terms that need more than outputs: activations, weights, other processes or random draws, or train modules."""


CODED: dict[type[LossSpec], Callable[[Any, Tensor], LossTerm]] = {
    spec.CrossEntropy: CodedCrossEntropyTerm,
    spec.Kd: CodedKdTerm,
}
"""Terms of a classifier whose outputs are logits of codes, which its classes share."""


def build_term(spec: LossSpec, builder: LossBuilder) -> LossTerm:
    """The term that `spec` describes, without its weight. Raises UserError (`invalid_job`)."""
    if isinstance(spec, LabelLoss):
        for problem in spec.class_problems(builder.outputs, builder.param):
            raise UserError("invalid_job", f"{problem.message}; accepted: {problem.accepted}", problem.param)
    if builder.codes is not None and type(spec) in CODED:
        return CODED[type(spec)](spec, builder.codes)
    plain = TERMS.get(type(spec))
    return plain(spec) if plain else BUILT[type(spec)](spec, builder)
