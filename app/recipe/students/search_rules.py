"""Rules of a student that is searched in sub-spaces of sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from app.recipe.cost import known_costs
from app.recipe.footprint import rough_cost
from app.recipe.job import JobSpec
from app.recipe.losses.features import AttentionRelation
from app.recipe.losses.taps import Tap
from app.recipe.problem import Problem
from app.recipe.students.architectures import Shrink
from app.recipe.students.derived import described_start
from app.recipe.students.model import ModelConfig
from app.recipe.students.shrink import LAYER, Unshrinkable, resized_model, sub_networks


def search_problems(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Problems of the search, and of the terms that compare the sub-networks with the teacher. `teachers` are
    descriptions by reference."""
    if not job.recipe.method.sub_spaces or not isinstance(job.student, Shrink):
        return
    try:
        teacher = described_start(job, teachers)
        spaces = sub_networks(job, teacher.architecture) if teacher else []
    except Unshrinkable:
        return  # reported elsewhere
    if teacher is None or not spaces:
        return
    # Without biases, norms, positions and heads, whose sizes are the library's: a bound that refuses nothing wrongly.
    costs = [rough_cost(resized_model(teacher, space[-1]).architecture, teacher.input, 0) for space in spaces]
    if (known := known_costs(costs)) is not None:
        yield from job.recipe.method.search_problems([(cost.parameters, cost.flops) for cost in known])
    least, last = min(space[-1].width for space in spaces), spaces[0][0].layers - 1
    for index, term in enumerate(job.recipe.losses):
        if not isinstance(term, AttentionRelation):
            continue
        path = f"recipe.losses[{index}]"
        if term.relation_heads > least:
            found = f"is {term.relation_heads}, and the narrowest sub-network has a width of {least}"
            yield Problem(f"{path}.relation_heads", found, f"at most {least}")
        for tap in term.layer.student.taps():
            if not _is_in_layer(tap, last):
                found = f"{tap.path!r} is not in the last layer of the student, in which sub-networks are compared"
                yield Problem(f"{path}.layer.student", found, f"modules of its layer {last}")


def _is_in_layer(tap: Tap, number: int) -> bool:
    found = LAYER.match(tap.path)
    return found is not None and int(found[2]) == number
