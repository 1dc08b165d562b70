"""Training methods: programs that change the loop itself, one file each, with the rules of its fields."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

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

Method = Annotated[
    Supervised
    | OnPolicy
    | SequenceLevel
    | Mutual
    | Online
    | Meta
    | Rollback
    | Adversarial
    | SmoothAdversarial
    | BoundarySamples
    | Supernet
    | Hpm
    | Untrained
    | ExportOnly,
    Field(discriminator="kind"),
]
METHODS: tuple[type[MethodSpec], ...] = get_args(get_args(Method)[0])
"""All kinds."""
