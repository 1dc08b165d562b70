"""What a job says for its model card that nobody can measure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from app.recipe.base import Spec

LicenseId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")]
UNKNOWN = "unknown"


class Card(Spec):
    """Terms of the student, for its model card."""

    license: LicenseId | None = Field(None, examples=["Apache-2.0", "MIT", "CC-BY-NC-4.0"])
    """The student's licence, as its SPDX identifier; none: the card says that it is not known. It is never concluded
    from the licences of teachers and data, which the card tells where they are known."""
