"""Losses on features of a tagger: rows are texts, padding counts nowhere, and a text counts with its words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.recipe.losses import LOSSES, AttentionRelation, Hint, LossSpec, MiAlpha, Pkd, Rkd
from app.recipe.losses.features import AttentionPair, FeatureTerm, Projections
from app.recipe.losses.taps import Pair, Tap
from app.recipe.tasks import TASKS
from app.recipe.teachers.teacher import Teacher
from tests.worker.tasks.token_classification.sentences import STUDENT, TEACHER, stage
from tests.worker.training.builders import finished, play
from worker.losses.base import Features, LossInputs
from worker.losses.builder import LossBuilder, TeacherSide
from worker.losses.objective import BatchOutputs
from worker.outputs import TeacherSignal
from worker.protocol import Finished, Metrics
from worker.students.weights import load_model
from worker.tasks.token_classification.objective import WordObjective
from worker.tensors import IGNORED

TASK = TASKS["token-classification"]
TEXTS, TOKENS, WIDTH, CLASSES = 4, 6, 6, 3
STATES = Tap(path="states")
PAIR = Pair(student=STATES, teacher=STATES)
QKV = Projections(qkv=STATES)
LENGTHS = torch.tensor([6, 4, 5, 3])
REAL = torch.arange(TOKENS) < LENGTHS.unsqueeze(1)
TEACHERS = [Teacher(model="a", name="one", weight=3.0), Teacher(model="b", name="other", weight=1.0)]
HINT = Hint(pairs=[PAIR], teacher="other")
SPECS: list[Any] = [
    HINT,
    Hint(pairs=[PAIR], reduction="mean", teacher="other"),
    Pkd(pairs=[PAIR], reduction="mean", teacher="other"),
    Rkd(pair=PAIR, reduction="mean", teacher="other"),
    AttentionRelation(layer=AttentionPair(student=QKV, teacher=QKV), relation_heads=2, teacher="other"),
    MiAlpha(pair=PAIR, reduction="mean", hidden=4, embedding=3, teacher="other"),
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{getattr(spec, 'reduction', '')}")


class Drawn:
    """Features (B, S, D) and logits (B, S, C) of a student and two teachers; no word begins in the third text."""

    def __init__(self, tokens: int = TOKENS) -> None:
        """`tokens` beyond those of `REAL` are padding, too, of large numbers."""
        random = torch.Generator().manual_seed(0)

        def draw(width: int) -> Tensor:
            values = torch.randn(TEXTS, TOKENS, width, generator=random, dtype=torch.float64)
            return torch.cat((values, torch.full((TEXTS, tokens - TOKENS, width), 1e3, dtype=torch.float64)), 1)

        self.student, *self.teachers = (draw(WIDTH) for _ in range(3))
        self.logits, *self.taught = (draw(CLASSES) for _ in range(3))
        self.student.requires_grad_()
        self.real = nn.functional.pad(REAL, (0, tokens - TOKENS))
        words = torch.rand(TEXTS, TOKENS, generator=random) < 0.6
        words[2] = False
        words[:, 1] = torch.tensor([True, True, False, True])
        self.words = nn.functional.pad(words, (0, tokens - TOKENS)) & self.real

    @property
    def targets(self) -> Tensor:
        return torch.zeros(self.words.shape, dtype=torch.int64).masked_fill(~self.words, IGNORED)

    def seen(self, rows: slice = slice(None)) -> BatchOutputs:
        signals = {
            each.name: TeacherSignal(logits[rows], None, {STATES: states[rows]}, self.real[rows])
            for each, logits, states in zip(TEACHERS, self.taught, self.teachers, strict=True)
        }
        features = {STATES: self.student[rows]}
        return BatchOutputs(self.logits[rows], self.targets[rows], signals, features, self.real[rows])


def objective(spec: LossSpec, tokens: int = TOKENS) -> WordObjective:
    shapes = {STATES: torch.Size((2, tokens, WIDTH))}
    sides = {each.name: TeacherSide(nn.Module(), shapes) for each in TEACHERS}
    builder = LossBuilder(shapes, sides, CLASSES)
    made = WordObjective([spec], builder, TEACHERS)  # type: ignore[list-item]
    builder.aux_modules.double()
    return made


def value(spec: LossSpec, drawn: Drawn) -> Tensor:
    made = objective(spec, drawn.real.shape[1])
    return made(drawn.seen(), made.count(drawn.targets))["loss"]


def gradient(spec: LossSpec, drawn: Drawn) -> Tensor:
    return torch.autograd.grad(value(spec, drawn), drawn.student)[0]


def by_text(spec: LossSpec, drawn: Drawn) -> Tensor:
    """The term itself, of all texts (B,)."""
    made = objective(spec)
    term = next(iter(made._terms.values())).term
    features = Features({STATES: drawn.student}, {STATES: drawn.teachers[1]}, drawn.real, drawn.real)
    return term(LossInputs(drawn.logits, drawn.targets, None, drawn.words.any(1), features=features))


def test_the_losses_on_features_that_fit_are_those_without_padding() -> None:
    fitting = {kind for kind in LOSSES if issubclass(kind, FeatureTerm) and TASK.fits(kind)}
    assert fitting == {type(spec) for spec in SPECS}


def test_a_hint_is_the_mean_over_all_tokens_of_a_text_which_counts_with_its_words() -> None:
    drawn = Drawn()
    squares = (drawn.student - drawn.teachers[1]).square().mean(-1)
    texts = torch.stack([row[real].mean() for row, real in zip(squares, drawn.real, strict=True)])
    words = drawn.words.sum(1)
    torch.testing.assert_close(value(HINT, drawn), (texts * words).sum() / words.sum())
    found = gradient(HINT, drawn)
    there = drawn.real & drawn.words.any(1, keepdim=True)
    assert (there & ~drawn.words).any(), "tokens that no word begins with are among those that count"
    assert found[there].any(-1).all()
    assert not found[~there].any()


@every_spec
def test_padding_changes_nothing(spec: LossSpec) -> None:
    short, long = Drawn(), Drawn(TOKENS + 5)
    torch.testing.assert_close(value(spec, long), value(spec, short))
    found = gradient(spec, long)
    assert not found[~long.real].any()
    torch.testing.assert_close(found[:, :TOKENS], gradient(spec, short))


@every_spec
def test_a_text_without_a_word_counts_for_nothing(spec: LossSpec) -> None:
    drawn = Drawn()
    found = gradient(spec, drawn)
    assert not found[2].any()
    assert found[[0, 1, 3]].flatten(1).any(1).all()


@every_spec
def test_a_batch_without_words_gives_zero(spec: LossSpec) -> None:
    drawn = Drawn()
    drawn.words[:] = False
    assert float(value(spec, drawn).detach()) == 0.0
    assert not gradient(spec, drawn).any()


@every_spec
def test_rows_that_are_coupled_have_a_plain_mean_and_others_add_up(spec: LossSpec) -> None:
    drawn, made = Drawn(), objective(spec)
    count = made.count(drawn.targets)
    if spec.couples_rows:
        texts = by_text(spec, drawn)[drawn.words.any(1)]
        torch.testing.assert_close(made(drawn.seen(), count)["loss"], texts.mean())
    else:
        parts = sum(made(drawn.seen(rows), count)["loss"] for rows in (slice(0, 1), slice(1, TEXTS)))
        torch.testing.assert_close(parts, made(drawn.seen(), count)["loss"])


LAYER = "bert.encoder.layer"
PLACES = {"teacher": f"{LAYER}.1", "student": f"{LAYER}.0"}
MODULES = {"queries": "query", "keys": "key", "values": "value"}
PROJECTED = {
    side: {name: f"{place}.attention.self.{module}" for name, module in MODULES.items()}
    for side, place in PLACES.items()
}
JOBS: dict[str, dict[str, Any]] = {
    "hint": {"pairs": [PLACES]},
    "rkd": {"pair": PLACES, "reduction": "mean"},
    "attention-relation": {"layer": PROJECTED, "relation_heads": 2},
    "mi-alpha": {"pair": PLACES, "hidden": 8, "embedding": 4},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tags") / "teacher"
    return finished(folder, stage(folder, TEACHER, recipe={"epochs": 1}))


@pytest.mark.parametrize("kind", JOBS)
def test_a_tagger_learns_from_features(kind: str, tmp_path: Path, teacher: Path) -> None:
    losses = [{"kind": "cross-entropy"}, {"kind": kind, **JOBS[kind]}]
    played = play(stage(tmp_path, STUDENT, teacher, losses, recipe={"epochs": 1}), tmp_path)
    assert isinstance(played.word, Finished), played.word
    values = [each.values[f"train/loss/{kind}"] for each in played.of(Metrics) if f"train/loss/{kind}" in each.values]
    assert values
    assert all(math.isfinite(one) for one in values)
    load_model(tmp_path / "bundle")  # refuses tensors that are not the network's
