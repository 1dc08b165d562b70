"""Fields of a job for its model card that can't be measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from app.recipe.base import Spec

LicenseId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")]
HubId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
]
UNKNOWN = "unknown"


class Card(Spec):
    """Terms and origin of the student, for its model card."""

    license: LicenseId | None = Field(None, examples=["Apache-2.0", "MIT", "CC-BY-NC-4.0"])
    """The student's licence, as its SPDX identifier; none: the card lists it as unknown. It is never derived
    from the licences of teachers and data, which the card lists if they are known."""
    datasets: list[HubId] = Field(default=[], max_length=16, examples=[["uoft-cs/cifar10"]])
    """Data sets that the training data comes from, by their ids on the Hugging Face hub, which reads them from the
    card's header. Files are named in the card with their digests in any case."""
