"""Training methods: programs that change the loop itself, one file each."""

from __future__ import annotations

from typing import Any

from app.recipe.methods.adversarial import Adversarial
from app.recipe.methods.base import MethodSpec
from app.recipe.methods.boundary_samples import BoundarySamples
from app.recipe.methods.export_only import ExportOnly
from app.recipe.methods.hpm import Hpm
from app.recipe.methods.meta import Meta
from app.recipe.methods.mutual import Mutual
from app.recipe.methods.on_policy import OnPolicy
from app.recipe.methods.online import Online
from app.recipe.methods.rollback import Rollback
from app.recipe.methods.sequence_level import SequenceLevel
from app.recipe.methods.smooth_adversarial import SmoothAdversarial
from app.recipe.methods.supernet import Supernet
from app.recipe.methods.supervised import Supervised
from app.recipe.methods.untrained import Untrained
from worker.methods.adversarial import AdversarialMethod
from worker.methods.base import Method, MethodInputs
from worker.methods.boundary_samples import BoundaryMethod
from worker.methods.export_only import ExportOnlyMethod
from worker.methods.hpm import HpmMethod
from worker.methods.meta import MetaMethod
from worker.methods.mutual import MutualMethod
from worker.methods.on_policy import OnPolicyMethod
from worker.methods.online import OnlineMethod
from worker.methods.rollback import RollbackMethod
from worker.methods.sequence_level import SequenceLevelMethod
from worker.methods.smooth_adversarial import SmoothAdversarialMethod
from worker.methods.supernet import SupernetMethod
from worker.methods.supervised import SupervisedMethod
from worker.methods.untrained import UntrainedMethod

METHODS: dict[type[MethodSpec], type[Method[Any]]] = {
    Supervised: SupervisedMethod,
    OnPolicy: OnPolicyMethod,
    SequenceLevel: SequenceLevelMethod,
    Mutual: MutualMethod,
    Rollback: RollbackMethod,
    Adversarial: AdversarialMethod,
    SmoothAdversarial: SmoothAdversarialMethod,
    BoundarySamples: BoundaryMethod,
    Online: OnlineMethod,
    Meta: MetaMethod,
    Supernet: SupernetMethod,
    Hpm: HpmMethod,
    Untrained: UntrainedMethod,
    ExportOnly: ExportOnlyMethod,
}


def build_method(inputs: MethodInputs) -> Method[Any]:
    """Build the job's training method."""
    spec = inputs.job.recipe.method
    return METHODS[type(spec)](spec, inputs)
