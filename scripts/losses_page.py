"""Writes the page of all losses, read off the contract: `python -m scripts.losses_page > docs/losses.md`."""

from __future__ import annotations

import inspect
import json
import sys

from app.recipe import losses
from app.recipe.losses import LOSSES, LossSpec

HEAD = """# Losses

The terms that `recipe.losses` may list, each with its `kind`; their weighted sum is minimised. The same is served as
JSON by `GET /v1/catalog/losses`. This page is written by `python -m scripts.losses_page`.

{notation}

All are computed in at least float32 and in log space. A row whose label is -100 counts for nothing, and nor does a
column in which either side's logit is -inf. Each term is divided by the rows of the whole batch that count, so that
`accumulate` does not change a step. Every term has a `weight` (1.0 unless its defaults say another), a number or a ramp
over its stage, and may name its `teacher` when a job has several: without a name it learns from all of them, by their
weights.
"""


def page() -> str:
    """The page in Markdown."""
    notation = (losses.__doc__ or "").split("\n\n", 1)[1].strip()
    return "\n".join([HEAD.format(notation=notation), *(entry(term) for term in LOSSES)])


def entry(term: type[LossSpec]) -> str:
    """What there is to know of one loss."""
    source = f"[{term.paper.title}](https://arxiv.org/abs/{term.paper.arxiv})" if term.paper else "none"
    return f"""## `{term.model_fields["kind"].default}`

{inspect.getdoc(term)}

- equation: `{term.equation}`
- defaults: {defaults(term)}
- source: {source}
- for: {term.applies}
"""


def defaults(term: type[LossSpec]) -> str:
    """Fields and what they are when a job leaves them out."""
    usual = {name: field.default for name, field in LossSpec.model_fields.items()}
    fields = {
        name: field
        for name, field in term.model_fields.items()
        if name != "kind" and (name not in usual or field.default != usual[name])
    }
    return (
        "none of its own"
        if not fields
        else ", ".join(
            f"`{name}` {'(must be given)' if field.is_required() else shown(field.default)}"
            for name, field in fields.items()
        )
    )


def shown(value: object) -> str:
    """A value as a job's YAML writes it."""
    return json.dumps(value)


if __name__ == "__main__":
    sys.stdout.write(page())
