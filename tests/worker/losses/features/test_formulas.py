"""Properties of single kinds beyond the values of their test vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from app.recipe.losses import LossSpec
from app.recipe.losses.features import (
    ActivationBoundary,
    AttentionPair,
    AttentionRelation,
    FeatureAutoencoder,
    Hint,
    InheritanceExploration,
    Lipschitz,
    MarginPair,
    MiAlpha,
    Overhaul,
    Pkd,
    Projections,
    Rkd,
)
from app.recipe.losses.taps import Tap
from tests.worker.losses.features.samples import (
    FUSED,
    QKV,
    SEPARATE,
    build,
    builder,
    draw,
    fused,
    margin_pair,
    pair,
)
from worker.errors import UserError
from worker.losses import build_term
from worker.losses.base import LossInputs
from worker.losses.features import mi_alpha, rkd
from worker.losses.features.inheritance import Autoencoder
from worker.losses.features.lipschitz import spectral_norm
from worker.losses.features.overhaul import margins


def with_student(rows: LossInputs, **features: Tensor) -> LossInputs:
    """Other features of the student at these taps."""
    student = {**rows.features.student, **{Tap(path=name): value for name, value in features.items()}}
    return rows._replace(features=rows.features._replace(student=student))


def test_hint_is_a_mean_over_entries_and_a_sum_over_pairs() -> None:
    rows, places = draw(), [pair("vector", "same.vector"), pair("map", "same.map")]
    expected = sum(F.mse_loss(rows.features.student[one.student], rows.features.teacher[one.teacher]) for one in places)
    torch.testing.assert_close(build(Hint(pairs=places))(rows).mean(), expected)


def test_angles_in_parts_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, spec = draw(7), Rkd(pair=pair("vector"))
    taps = rows.features.student[Tap(path="vector")]
    whole = build(spec)(rows)
    (expected,) = torch.autograd.grad(whole.sum(), taps)
    monkeypatch.setattr(rkd, "AT_ONCE", 100)
    parts = build(spec)(rows)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.sum(), taps)[0], expected)


def test_relations_do_not_change_with_scale_and_place() -> None:
    rows, spec = draw(), Rkd(pair=pair("vector"))
    moved = with_student(rows, vector=3.0 * rows.features.student[Tap(path="vector")] - 5.0)
    torch.testing.assert_close(build(spec)(moved), build(spec)(rows))


def test_one_projection_of_all_three_counts_like_three() -> None:
    rows = draw()
    both = {}
    for side, width in (("student", 6), ("teacher", 9)):
        seen = getattr(rows.features, side)
        three = seen[Tap(path="qkv")].split(width, dim=-1)
        both[side] = {**seen, **{Tap(path=name): part for name, part in zip("qkv", three, strict=True)}}
    rows = rows._replace(features=rows.features._replace(**both))
    found = [build(AttentionRelation(layer=layer, relation_heads=3))(rows) for layer in (SEPARATE, FUSED)]
    mixed = AttentionPair(student=QKV, teacher=fused("qkv"))
    found.append(build(AttentionRelation(layer=mixed, relation_heads=3))(rows))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_what_padding_holds_does_not_matter_to_relations() -> None:
    rows, spec = draw(), AttentionRelation(layer=FUSED, relation_heads=3)
    tokens = torch.arange(4) < torch.tensor([[1], [2], [3], [4], [4]])
    rows = rows._replace(features=rows.features._replace(student_tokens=tokens))
    states = rows.features.student[Tap(path="qkv")]
    other = with_student(rows, qkv=states.where(tokens.unsqueeze(-1), 1e3))
    torch.testing.assert_close(build(spec)(other), build(spec)(rows))


def test_patient_terms_compare_directions() -> None:
    rows = draw()
    spec = Pkd(pairs=[pair("vector", "same.vector"), pair("tokens", "same.tokens")])
    seen, taught = rows.features.student, rows.features.teacher
    sides = [(seen[Tap(path="vector")], taught[Tap(path="same.vector")])]
    sides.append((seen[Tap(path="tokens")][:, 0], taught[Tap(path="same.tokens")][:, 0]))
    directions = [[each / each.norm(dim=1, keepdim=True) for each in side] for side in sides]
    expected = sum((ours - theirs).square().mean(1) for ours, theirs in directions) / 2
    torch.testing.assert_close(build(spec)(rows), expected)
    longer = with_student(rows, vector=3.0 * seen[Tap(path="vector")])
    torch.testing.assert_close(build(spec)(longer), expected)


def test_relations_of_a_model_with_itself_cost_nothing() -> None:
    rows = draw()
    states = rows.features.student[Tap(path="qkv")]
    teacher = {**rows.features.teacher, Tap(path="qkv"): states.detach()}
    rows = rows._replace(features=rows.features._replace(teacher=teacher))
    for relation in ("kl", "mse"):
        found = build(AttentionRelation.model_validate(layer_document(relation)))(rows)
        torch.testing.assert_close(found, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


def layer_document(relation: str) -> dict[str, Any]:
    side = {"qkv": "qkv"}
    return {
        "kind": "attention-relation",
        "layer": {"teacher": side, "student": side},
        "relation_heads": 3,
        "relation": relation,
    }


def test_margins_are_means_of_what_is_negative() -> None:
    torch.manual_seed(0)
    weight, bias = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([0.0, 1.0, -1.0, 1.0])
    drawn = bias + weight * torch.randn(1_000_000, 4)
    found = margins(weight, bias)
    for channel in range(3):
        values = drawn[:, channel]
        assert found[channel].item() == pytest.approx(values[values < 0].mean().item(), rel=0.01)
    assert found[3].item() == pytest.approx(0.0, abs=1e-9)
    assert (found <= 0.0).all()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3, affine=False), nn.LayerNorm(3), nn.Conv2d(3, 3, 1)])
def test_only_a_batch_norm_with_weights_has_margins(norm: nn.Module) -> None:
    shop = builder()
    shop.teacher_module("norms").add_module("map", norm)
    with pytest.raises(UserError, match="accepted: a batch norm with weight and bias"):
        build_term(Overhaul(pairs=[margin_pair("map")]), shop)


def test_the_batch_norm_may_be_the_tap_itself() -> None:
    shop = builder()
    shop._teachers["teacher"].shapes[Tap(path="norms.map")] = torch.Size((2, 5, 4, 4))  # type: ignore[index]
    at_norm = MarginPair(student=Tap(path="map"), teacher=Tap(path="norms.map"))
    build_term(Overhaul(pairs=[at_norm]), shop)


def test_what_the_teacher_cuts_off_need_not_be_matched() -> None:
    rows = draw()
    below = rows.features.teacher[Tap(path="same.map")].abs().neg()
    teacher = {**rows.features.teacher, Tap(path="same.map"): below}
    rows = rows._replace(features=rows.features._replace(teacher=teacher))
    spec = Overhaul(pairs=[margin_pair("map", "same.map")], adapter="none")
    assert (build(spec)(with_student(rows, map=below - 100.0)) == 0.0).all()
    assert (build(spec)(with_student(rows, map=below + 100.0)) > 0.0).all()


def test_neurons_on_the_right_side_of_the_margin_cost_nothing() -> None:
    rows = draw()
    teacher = rows.features.teacher[Tap(path="same.map")]
    spec = ActivationBoundary(pairs=[pair("map", "same.map")], adapter="none", margin=0.5)
    right = teacher.sign() * (0.5 + teacher.abs())
    assert (build(spec)(with_student(rows, map=right)) == 0.0).all()
    torch.testing.assert_close(build(spec)(with_student(rows, map=-right)), (0.5 + right.abs()).square().sum((1, 2, 3)))


def test_later_stages_count_twice_as_much() -> None:
    rows = draw()
    first, last = pair("map", "same.map"), pair("late", "same.late")
    one, other, both = (
        build(ActivationBoundary(pairs=pairs, adapter="none"))(rows) for pairs in ([first], [last], [first, last])
    )
    torch.testing.assert_close(both, one / 2 + other)


def test_the_power_iteration_finds_the_spectral_norm() -> None:
    matrix = torch.randn(3, 4, 6, dtype=torch.float64)
    found = spectral_norm(matrix, torch.ones(3, 4, 1, dtype=torch.float64), 200)
    torch.testing.assert_close(found, torch.linalg.matrix_norm(matrix, 2), rtol=1e-6, atol=0)


def test_leaving_one_out_bears_scores_that_dominate() -> None:
    scores = torch.randn(5, 5, dtype=torch.float64)
    scores[0, 1], scores[1, 3], scores[2] = 500.0, -500.0, 7.0
    expected = torch.stack(
        [torch.cat([scores[:, :j], scores[:, j + 1 :]], dim=1).logsumexp(1) for j in range(5)], dim=1
    )
    torch.testing.assert_close(mi_alpha.leave_one_out(scores), expected)


def test_infonce_is_cross_entropy_with_the_own_row_less_log_of_the_batch() -> None:
    scores, valid = torch.randn(6, 6, dtype=torch.float64), torch.ones(6, dtype=torch.bool)
    expected = F.cross_entropy(scores, torch.arange(6)) - torch.tensor(6.0, dtype=torch.float64).log()
    torch.testing.assert_close(mi_alpha.infonce(scores, valid).mean(), expected)


def test_a_critic_learns_that_features_belong_together() -> None:
    torch.manual_seed(0)
    built = build(MiAlpha(pair=pair("vector"), hidden=16, embedding=8))
    optimizer = torch.optim.Adam(built.trained, lr=1e-2)
    rows = draw(16)
    for _ in range(100):
        optimizer.zero_grad()
        loss = built(rows).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss < -0.5


def test_an_autoencoder_learns_and_is_then_left_alone() -> None:
    shop = builder()
    first = build_term(FeatureAutoencoder(tap=Tap(path="map")), shop)
    parts, rows = shop.aux_modules.double(), draw()
    before = first(rows).mean().item()
    optimizer = torch.optim.Adam(parts.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        first(rows).mean().backward()
        optimizer.step()
    assert first(rows).mean().item() < 0.8 * before
    shop.new_stage()
    second = build_term(InheritanceExploration(pair=pair("map")), shop)
    shop.aux_modules.double()
    (name,) = shop.frozen
    assert isinstance(shop.aux_modules[name].eval(), Autoencoder)
    kept = {key: value.clone() for key, value in shop.aux_modules[name].state_dict().items()}
    optimizer = torch.optim.Adam(shop.aux_modules.parameters(), lr=1e-2)
    optimizer.zero_grad()
    second(rows).mean().backward()
    optimizer.step()
    torch.testing.assert_close(shop.aux_modules[name].state_dict(), kept, rtol=0, atol=0)


def test_an_autoencoder_is_not_trained_in_the_stage_that_uses_it() -> None:
    trains, uses = FeatureAutoencoder(tap=Tap(path="map")), InheritanceExploration(pair=pair("map"))
    shop = builder()
    build_term(trains, shop)
    with pytest.raises(UserError, match="no stage before this one"):
        build_term(uses, shop)
    shop.new_stage()
    build_term(uses, shop)
    with pytest.raises(UserError, match="is used in the same stage"):
        build_term(trains, shop)


def test_halves_of_the_student_are_inherited_and_explored() -> None:
    rows, spec = draw(), InheritanceExploration(pair=pair("late", "map"), distance="cosine")
    feature = rows.features.student[Tap(path="late")]
    only = spec.model_copy(update={"explore": 0.0})
    (grad,) = torch.autograd.grad(build(only)(rows).sum(), feature)
    assert grad[:, :2].any()
    assert not grad[:, 2:].any()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Rkd, {"distance": 0.0, "angle": 0.0}),
        (InheritanceExploration, {"pair": pair("map"), "inherit": 0.0, "explore": 0.0}),
        (Lipschitz, {"pairs": [pair("map")]}),
        (Hint, {"pairs": []}),
        (FeatureAutoencoder, {"tap": Tap(path="map"), "p": 0.5}),
        (MiAlpha, {"pair": pair("map"), "alpha": 1.5}),
        (MiAlpha, {"pair": pair("map"), "name": "with.dots"}),
        (Projections, {"queries": Tap(path="q")}),
        (Projections, {"queries": Tap(path="q"), "keys": Tap(path="q"), "values": Tap(path="q"), "qkv": Tap(path="q")}),
    ],
)
def test_settings_without_sense_are_refused(kind: type[LossSpec], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind(**fields)
