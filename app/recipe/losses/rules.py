"""Rules of the loss terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from app.recipe.data.sources import Table
from app.recipe.job import JobSpec
from app.recipe.losses import (
    Contrastive,
    Dexml,
    Ferkd,
    KdRel,
    KdTopk,
    L2Svm,
    LabelLoss,
    LgAnna,
    LogitMse,
    Loss,
    Mw,
    PairScore,
    UniMe,
)
from app.recipe.methods.base import STUDENT
from app.recipe.methods.supernet import Supernet
from app.recipe.problem import Problem
from app.recipe.students.architectures import ZOO
from app.recipe.students.derived import network_of
from app.recipe.students.heads import SvmHead
from app.recipe.students.model import ModelConfig
from app.recipe.students.shrink import Unshrinkable

MAIN = "recipe.losses"
"""Path of the losses of the main training."""

PairLoss = Contrastive | PairScore | Mw | UniMe | LgAnna | Dexml


def loss_problems(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Problems of the loss terms of all stages. `teachers` are descriptions by reference."""
    yield from _svm_problems(job, teachers)
    yield from _search_problems(job)
    known = [teachers[teacher.reference].classes for teacher in job.all_teachers if teacher.reference in teachers]
    classes = job.data.declared_classes or next(iter(known), None)
    others = job.recipe.method.objectives()
    for path, terms in {**job.objectives, **others}.items():
        names = [STUDENT] if path in others else [share.name for share in job.teacher_shares]
        for index, term in enumerate(terms):
            yield from _term_problems(job, term, f"{path}[{index}]", names)
            if isinstance(term, KdRel):
                yield from _hierarchy_problems(job, term, classes, f"{path}[{index}].parents")
            yield from _kept_classes_problems(term, classes, f"{path}[{index}]")
            if path == MAIN and term.needs_plain_steps and not job.recipe.method.plain_steps:
                found = f"{term.kind} is not computed by the steps of {job.recipe.method.kind}"
                yield Problem(
                    f"{path}[{index}].kind", found, "another loss, or recipe.method.kind supervised or rollback"
                )
            if isinstance(term, LabelLoss) and classes is not None:
                yield from term.class_problems(classes, f"{path}[{index}]")


def _svm_problems(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Problems of terms that regularise a head of kind svm, and of such a head that none does."""
    try:
        network = network_of(job, teachers)
    except Unshrinkable:
        return  # reported elsewhere
    if network is None:
        return
    head = network.head if isinstance(network, ZOO) else None
    terms = {f"{path}[{index}]": term for path, terms in job.objectives.items() for index, term in enumerate(terms)}
    svm = {path: term for path, term in terms.items() if isinstance(term, L2Svm)}
    if isinstance(head, SvmHead):
        if not any(path.startswith(MAIN) for path in svm):
            found = "is svm, and recipe.losses has no l2-svm, which trains it"
            yield Problem("student.head.kind", found, "another head, or a loss l2-svm")
        return
    for path, term in svm.items():
        if term.regularisation > 0.0:
            found = f"is {term.regularisation:g}, and the student has no head of kind svm, whose weights it regularises"
            yield Problem(f"{path}.regularisation", found, "0, or student.head: {kind: svm} of a network of the zoo")


def _term_problems(job: JobSpec, term: Loss, path: str, names: Sequence[str]) -> Iterator[Problem]:
    """`names` are those of the teachers that it may learn from."""
    if not job.task_spec.fits(type(term)):
        yield Problem(f"{path}.kind", job.task_spec.refusal(type(term)), "a loss for this task")
    elif job.task_spec.per_token:
        yield from term.by_token_problems(path)
    if isinstance(term, LogitMse) and term.centered and not job.task_spec.chooses:
        found = f"is true, and the mean of the logits counts for {job.task}"
        yield Problem(f"{path}.centered", found, "false")
    if isinstance(term, PairLoss):
        yield from _pair_problems(job, term, path)
    yield from job.task_spec.loss_problems(job.data, term, path)
    if isinstance(term, Dexml) and job.task_spec.answers == "labels" and term.temperature is not None:
        found = f"is {term.temperature:g}, and the logits of labels are not divided"
        yield Problem(f"{path}.temperature", found, "null; student.temperature divides the cosines of a dual-encoder")
    for field_name, name in term.named_teachers().items():
        if not term.needs_teacher:
            yield Problem(f"{path}.{field_name}", f"{term.kind} uses no teacher", "no name")
        elif name not in names:
            yield Problem(f"{path}.{field_name}", f"there is no teacher {name!r}", f"one of {', '.join(names)}")
    if term.couples(job.task_spec.answers) and job.recipe.accumulate > 1 and term.kind not in job.recipe.method.divides:
        found = f"is {job.recipe.accumulate}, but {term.kind} compares all samples of a batch with each other"
        yield Problem("recipe.accumulate", f"{found}, so that a batch can't be computed in parts", "1")


def _pair_problems(job: JobSpec, term: PairLoss, path: str) -> Iterator[Problem]:
    if not isinstance(job.data, Table) or not job.task_spec.fits(type(term)) or job.task_spec.answers != "vectors":
        return
    if "images" in job.task_spec.reads:
        return
    listed = bool(job.data.candidate_columns) or job.data.mining is not None
    if isinstance(term, PairScore) and listed:
        lists = "data.candidate_columns names lists" if job.data.candidate_columns else "data.mining makes lists"
        found = f"{term.kind} compares the two texts of a pair, and {lists}"
        yield Problem(f"{path}.kind", found, "a loss on candidates")
    elif isinstance(term, Contrastive) and listed and term.anchors == "both":
        yield Problem(f"{path}.anchors", "is both, and of lists of candidates only queries are anchors", "first")
    elif term.needs_lists and not listed:
        found = f"{term.kind} compares the candidates of a query, and data.candidate_columns names none"
        yield Problem(f"{path}.kind", found, "queries with lists of candidates")
    elif len(job.data.source_columns) < 2:
        yield Problem(f"{path}.kind", f"{term.kind} compares two texts, and data.input_columns names one", "pairs")
    elif term.needs_scores and job.data.mining is not None:
        found = f"is given, and {term.kind} needs scores of all candidates, which mined ones do not have"
        yield Problem("data.mining", found, "none, or the teacher's cosines instead of scores")
    elif term.needs_scores and not job.data.label_columns:
        yield Problem("data.label_columns", f"is missing, and {term.kind} needs scores", "the column of scores")


def _search_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of lists and corpora with a method that computes losses on held-out samples, or keeps samples back."""
    for field in ("candidate_columns", "eval_candidate_columns", "corpus", "mining"):
        if isinstance(job.recipe.method, Supernet) and getattr(job.data, field, None):
            found = f"is given, and {job.recipe.method.kind} computes losses of single texts and pairs"
            yield Problem(f"data.{field}", found, "none")
    if isinstance(job.data, Table) and job.data.mining is not None and job.recipe.method.kept_back:
        found = f"is given, and {job.recipe.method.kind} keeps back samples, which get no negatives"
        yield Problem("data.mining", found, "none")


def _hierarchy_problems(job: JobSpec, term: KdRel, classes: int | None, param: str) -> Iterator[Problem]:
    given = len(term.parents)
    if classes is None and not job.all_teachers:
        yield Problem("data.classes", f"is missing, and {term.kind} needs it", f"{given}, as in {param}")
    if classes not in (None, given):
        yield Problem(param, f"has {given} numbers for {classes} classes", "one number per class")


def _kept_classes_problems(term: Loss, classes: int | None, path: str) -> Iterator[Problem]:
    field, kept = ("top_k", term.top_k) if isinstance(term, Ferkd) else ("k", None)
    if isinstance(term, KdTopk):
        kept = term.k
    if kept is not None and classes is not None and kept > classes:
        yield Problem(f"{path}.{field}", f"{kept} is more than the {classes} classes", f"at most {classes}")
    if isinstance(term, Dexml) and term.criterion == "top-k" and classes is not None and term.k >= classes:
        yield Problem(f"{path}.k", f"is {term.k}, and there are {classes} classes", f"at most {classes - 1}")
