"""The form in which a rule of the contract reports a breach."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """One thing wrong with a job: the path of the field, what is wrong, and what would be accepted."""

    param: str
    message: str
    accepted: str | None = None
