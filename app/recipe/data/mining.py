"""Mining of hard negatives for the queries of a job."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Paper, Spec

MOST_MINED = 64
"""Most negatives of a query."""


class Mining(Spec):
    """Hard negatives: the texts most similar to a query that are not its positives, without those that are so similar
    that they are probably unlabelled positives."""

    paper: ClassVar[Paper | None] = Paper(
        "NV-Retriever: Improving text embedding models with effective hard-negative mining", "2407.15831"
    )
    count: int = Field(4, ge=1, le=MOST_MINED)
    """Most negatives of a query; it has fewer if fewer are kept."""
    keep: Literal["ratio", "margin", "all"] = "ratio"
    """Rule against false negatives: a text's cosine to the query is at most `ratio` times that of the query's first
    positive, or at least `margin` below it; `all` keeps every text."""
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Largest share of the first positive's cosine, of a negative one what is as far below it; for `keep: ratio`."""
    margin: Annotated[float, Field(ge=0.0, le=2.0)] = 0.05
    """Least difference from the first positive's cosine; for `keep: margin`."""
    skip_first: int = Field(0, ge=0, le=1024)
    """Most similar texts of each query that are left out, whatever the rule."""

    @model_validator(mode="after")
    def _has_the_field_of_its_rule(self) -> Self:
        for name in {"ratio", "margin"} - {self.keep}:
            if getattr(self, name) != type(self).model_fields[name].default:  # a stored document has all fields
                raise ValueError(f"{name} is only allowed with keep: {name}")
        return self
