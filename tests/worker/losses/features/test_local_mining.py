"""Local mining: matches, negatives and the loss, against loops over images and local features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import CfcdLocal
from app.recipe.losses.taps import Tap
from worker.data.randomness import generator
from worker.errors import UserError
from worker.losses import build_term
from worker.losses.base import Features, LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.local_mining import CfcdLocalTerm, local_features, tuples

MAP = Tap(path="map")
CHANNELS, SIDE = 4, 3


def spec(**changes: Any) -> CfcdLocal:
    return CfcdLocal(feature=MAP, **changes)


def builder(shape: tuple[int, ...] = (CHANNELS, SIDE, SIDE), classes: int = 3) -> LossBuilder:
    return LossBuilder({MAP: torch.Size((2, *shape))}, {}, 5, param="recipe.losses[0]", classes=classes)


def loss_of(term: CfcdLocalTerm | Any, maps: Tensor, vectors: Tensor, labels: Tensor, valid: Any = None) -> Tensor:
    found: Tensor = term(LossInputs(vectors, labels, None, valid, features=Features({MAP: maps}, {})))
    return found


def draw(rows: int = 7, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Maps that are alike within a class, vectors, and labels."""
    random = generator(seed, "maps")
    labels = torch.arange(rows) % classes
    patterns = torch.randn(classes, CHANNELS, SIDE, SIDE, generator=random, dtype=torch.float64)
    maps = patterns[labels] + 0.4 * torch.randn(rows, CHANNELS, SIDE, SIDE, generator=random, dtype=torch.float64)
    vectors = torch.randn(rows, 5, generator=random, dtype=torch.float64)
    return maps.requires_grad_(), vectors, labels


def by_loops(wanted: CfcdLocal, maps: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    """The same, one image and one local feature after the other."""
    rows = [F.normalize(each.flatten(1).T, dim=1) for each in maps]
    lengths = [each.detach().flatten(1).norm(dim=0) for each in maps]
    chosen = [each.argsort(descending=True)[: wanted.features] for each in lengths]
    losses = []
    for query in range(len(maps)):
        total = maps.new_zeros(())
        after = [(query + step) % len(maps) for step in range(1, len(maps))]
        partner = next((row for row in after if labels[row] == labels[query]), None)
        others = [row for row in range(len(maps)) if labels[row] != labels[query]]
        others.sort(key=lambda row: -float(F.cosine_similarity(vectors[row], vectors[query], dim=0)))
        losses.append(total)
        if partner is None:
            continue
        own, theirs = rows[query][chosen[query]], rows[partner][chosen[partner]]
        distance = torch.cdist(own, theirs).detach()
        for place in range(len(own)):
            near, second = distance[place].sort().values[:2]
            match = int(distance[place].argmin())
            if int(distance[:, match].argmin()) != place or near > wanted.ratio * second:
                continue
            if match >= len(theirs) // 2:  # they are in the order of their lengths
                continue
            attracted = (own[place] - theirs[match]).square().sum()
            for other in others[: wanted.negatives]:
                negatives = rows[other][chosen[other]]
                apart = (own[place] - negatives).square().sum(1)
                total = total + (attracted - apart[apart.argmin()] + wanted.margin).clamp(min=0)
        losses[-1] = total
    return torch.stack(losses)


@pytest.mark.parametrize(
    "wanted",
    [spec(margin=1.0), spec(margin=2.0, features=5, negatives=2), spec(margin=1.5, ratio=1.0, negatives=64)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_what_loops_find(wanted: CfcdLocal, seed: int) -> None:
    maps, vectors, labels = draw(seed=seed)
    found = loss_of(build_term(wanted, builder()), maps, vectors, labels)
    expected = by_loops(wanted, maps, vectors, labels)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert int((found > 0).sum()) > 3
    gradients = [torch.autograd.grad(each.sum(), maps, retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_an_image_alone_in_its_class_and_a_batch_of_one_class_have_a_loss_of_zero() -> None:
    maps, vectors, labels = draw()
    term = build_term(spec(margin=2.0), builder())
    labels[labels == 2] = torch.tensor([2, 5])
    assert loss_of(term, maps, vectors, labels)[labels >= 2].tolist() == [0.0, 0.0]
    alone = loss_of(term, maps, vectors, torch.zeros_like(labels))
    assert alone.tolist() == [0.0] * 7
    (gradient,) = torch.autograd.grad(alone.sum(), maps)
    assert not bool(gradient.any())


def test_ignored_images_are_in_no_tuple() -> None:
    maps, vectors, labels = draw(9)
    valid = torch.arange(9) < 7
    term = build_term(spec(margin=2.0), builder())
    whole = loss_of(term, maps, vectors, labels, valid)[valid]
    torch.testing.assert_close(whole, loss_of(term, maps[:7], vectors[:7], labels[:7]))
    assert loss_of(term, maps, vectors, labels, torch.zeros(9, dtype=torch.bool)).tolist() == [0.0] * 9


def test_tuples_have_the_next_of_the_class_and_the_most_similar_of_others() -> None:
    labels = torch.tensor([0, 1, 0, 1, 2, 0])
    angles = torch.tensor([0.0, 10.0, 20.0, 90.0, 30.0, 180.0]).deg2rad()
    found = tuples(torch.stack([angles.cos(), angles.sin()], 1), labels, 2)
    assert found.positive[:4].tolist() == [2, 3, 5, 1]
    assert found.positive[5] == 0
    assert found.negatives.tolist()[:1] + found.negatives.tolist()[2:] == [[1, 4], [1, 4], [4, 2], [2, 1], [3, 4]]
    assert set(found.negatives[1].tolist()) == {0, 2}
    assert found.complete.tolist() == [[True, True]] * 4 + [[False, False]] + [[True, True]]


def test_positions_without_activity_have_no_gradient() -> None:
    maps = torch.zeros(4, CHANNELS, SIDE, SIDE)
    maps[:, :, 0, 0] = torch.rand(4, CHANNELS, generator=generator(0, "few"))
    maps.requires_grad_()
    term = build_term(spec(margin=4.0, ratio=1.0), builder())
    loss = loss_of(term, maps, torch.eye(4, 5), torch.tensor([0, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(loss.sum(), maps)
    assert bool(loss.isfinite().all())
    assert float(gradient.abs().max()) < 100.0
    assert not bool(gradient[:, :, 1:].any())


def test_local_features_are_the_longest_and_of_length_one() -> None:
    maps, *_ = draw()
    found = local_features(maps, 4)
    assert found.vectors.shape == (7, 4, CHANNELS)
    torch.testing.assert_close(found.vectors.norm(dim=-1), torch.ones(7, 4, dtype=torch.float64))
    assert torch.equal(found.attention, maps.detach().flatten(2).norm(dim=1).sort(1, descending=True).values[:, :4])
    assert local_features(maps, 99).vectors.shape[1] == SIDE * SIDE


@pytest.mark.parametrize(
    ("made", "param"),
    [
        (builder((CHANNELS,)), "recipe.losses[0].feature"),
        (builder((6, CHANNELS)), "recipe.losses[0].feature"),
        (builder((CHANNELS, 1, 1)), "recipe.losses[0].feature"),
        (builder(classes=0), "recipe.losses[0].kind"),
    ],
)
def test_what_has_no_local_features_is_refused_by_its_field(made: LossBuilder, param: str) -> None:
    with pytest.raises(UserError, match="accepted: a ") as error:
        build_term(spec(), made)
    assert (error.value.code, error.value.param) == ("invalid_job", param)
