"""A sample's augmentation does not depend on its batch, and labels change together with their samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from app.recipe.data.sources import AnyData, Data
from worker.data.augment import Augmenter
from worker.data.batches import Batch, Batches, whole_split
from worker.data.readers import WORDS, Special

RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randint(256, (23, 3, 12, 10), generator=RANDOM, dtype=torch.uint8)
LABELS = torch.arange(23) % 4
VIEW = "tokens:a"
ALL_OF_IMAGES: list[list[dict[str, Any]]] = [
    [{"kind": "crop", "padding": 3}],
    [{"kind": "flip"}],
    [{"kind": "cutout", "size": 5}],
    [{"kind": "rand-augment", "operations": 3, "magnitude": 13.0}],
    [{"kind": "resized-crop"}],
    [{"kind": "color-jitter", "probability": 1.0, "hue": 0.4}],
    [{"kind": "grayscale", "probability": 0.5}],
    [{"kind": "blur"}],
    [{"kind": "mixup"}],
    [{"kind": "cutmix", "probability": 1.0}],
    [{"kind": "crop"}, {"kind": "self-mix"}],
    [{"kind": "crop"}, {"kind": "self-mix", "how": "mean"}],
    [{"kind": name} for name in ("crop", "flip", "rand-augment", "cutout", "mixup", "cutmix", "self-mix")],
]


def options(steps: list[dict[str, Any]], **more: Any) -> Data:
    found: Data = TypeAdapter(AnyData).validate_python({"train": "f", "augment": steps, **more})
    return found


def of_images(steps: list[dict[str, Any]], seed: int = 5, **more: Any) -> Augmenter:
    return Augmenter(options(steps, **more), whole_split({"images": IMAGES}, LABELS), 4, seed)


def seen(augmenter: Augmenter, samples: Batch, size: int, epoch: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    batches = Batches(samples, size, 3, augmenter)
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    found = {}
    for batch in map(batches.at, steps):
        rows = zip(batch.index.tolist(), next(iter(batch.inputs.values())), batch.targets, strict=True)
        found |= {number: (pixels, target) for number, pixels, target in rows}
    return found


@pytest.mark.parametrize("steps", ALL_OF_IMAGES, ids=lambda steps: "+".join(step["kind"] for step in steps))
def test_a_sample_is_the_same_in_every_batch_and_another_in_every_epoch(steps: list[dict[str, Any]]) -> None:
    samples = whole_split({"images": IMAGES}, LABELS)
    alone, together = (seen(of_images(steps), samples, size, epoch=2) for size in (1, 23))
    some = seen(of_images(steps), samples, 7, epoch=2)
    assert alone.keys() == together.keys() == some.keys() == set(range(23))
    for number, (pixels, target) in alone.items():
        for other in (together[number], some[number]):
            assert torch.equal(pixels, other[0])
            assert torch.equal(target, other[1])
    later = seen(of_images(steps), samples, 7, epoch=3)
    assert any(not torch.equal(some[number][0], later[number][0]) for number in some)
    assert any(not torch.equal(some[number][0], IMAGES[number].float()) for number in some)


def test_augmentation_epochs_come_again() -> None:
    steps = [{"kind": "crop"}, {"kind": "mixup"}]
    augmenter, batch = of_images(steps, augment_epochs=2), whole_split({"images": IMAGES}, LABELS)
    looks = [augmenter(batch, epoch) for epoch in range(4)]
    assert [look.epoch for look in looks] == [0, 1, 0, 1]
    assert torch.equal(looks[0].inputs["images"], looks[2].inputs["images"])
    assert not torch.equal(looks[0].inputs["images"], looks[1].inputs["images"])
    assert [of_images(steps).cycle(epoch) for epoch in (0, 1, 7)] == [0, 1, 7]


def test_the_digest_depends_on_everything_that_determines_the_pixels() -> None:
    steps = [{"kind": "crop"}]
    found = of_images(steps).digest()
    assert found == of_images(steps).digest()
    others = [of_images(steps, seed=6), of_images(steps, augment_epochs=3), of_images([{"kind": "crop", "padding": 2}])]
    assert len({found, *(other.digest() for other in others)}) == 4


def test_images_keep_their_range_and_labels_become_distributions() -> None:
    found = of_images([{"kind": "flip"}, {"kind": "mixup", "alpha": 1.0}])(whole_split({"images": IMAGES}, LABELS), 0)
    images = found.inputs["images"]
    assert images.dtype == torch.float32
    assert 1 < images.max() <= 255
    assert found.targets.shape == (23, 4)
    torch.testing.assert_close(found.targets.sum(1), torch.ones(23))
    assert (found.targets.amax(1) < 1).any()


def test_without_a_mix_labels_stay_as_they_are() -> None:
    found = of_images([{"kind": "flip"}])(whole_split({"images": IMAGES}, LABELS), 0)
    assert torch.equal(found.targets, LABELS)


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    found = of_images([{"kind": "crop", "padding": 2}])(whole_split({"images": IMAGES}, LABELS), 0).inputs["images"]
    padded = torch.nn.functional.pad(IMAGES.float(), (2, 2, 2, 2))
    windows = padded.unfold(2, 12, 1).unfold(3, 10, 1).permute(0, 2, 3, 1, 4, 5)
    places = [
        [(y, x) for y in range(5) for x in range(5) if torch.equal(windows[n, y, x], found[n])] for n in range(23)
    ]
    assert all(places)
    assert len({place[0] for place in places}) > 5


def test_a_cutout_blanks_one_square() -> None:
    images = torch.full((40, 1, 9, 9), 7, dtype=torch.uint8)
    augmenter = Augmenter(
        options([{"kind": "cutout", "size": 4}]), whole_split({"images": images}, torch.zeros(40)), 2, 1
    )
    holes = augmenter(whole_split({"images": images}, torch.zeros(40)), 0).inputs["images"] == 0
    assert holes.sum((1, 2, 3)).max() == 16
    assert (holes.any(2).sum(2) * holes.any(3).sum(2) == holes.sum((2, 3))).all()


def test_cutmix_weighs_labels_by_what_is_seen() -> None:
    images = (torch.arange(23) % 4 * 10 + 10).view(-1, 1, 1, 1).expand(23, 1, 12, 10).to(torch.uint8)
    samples = whole_split({"images": images}, LABELS)
    found = Augmenter(options([{"kind": "cutmix", "probability": 1.0}]), samples, 4, 2)(samples, 0)
    for label in range(4):
        share = (found.inputs["images"] == label * 10 + 10).float().mean((1, 2, 3))
        torch.testing.assert_close(found.targets[:, label], share)


def test_mixup_is_one_weight_for_pixels_and_labels() -> None:
    images = (LABELS == 0).view(-1, 1, 1, 1).expand(23, 1, 12, 10).to(torch.uint8) * 200
    samples = whole_split({"images": images}, LABELS)
    found = Augmenter(options([{"kind": "mixup", "alpha": 1.0}]), samples, 4, 2)(samples, 0)
    torch.testing.assert_close(found.inputs["images"].mean((1, 2, 3)) / 200, found.targets[:, 0])


def test_labels_that_are_there_or_not_become_shares_where_samples_are_mixed() -> None:
    images = (LABELS == 0).view(-1, 1, 1, 1).expand(23, 1, 12, 10).to(torch.uint8) * 200
    flags = torch.stack([LABELS == 0, LABELS > 1, torch.zeros(23), torch.ones(23)], 1).float()
    samples = whole_split({"images": images}, flags)
    plain = Augmenter(options([{"kind": "crop"}]), samples, 4, 2)(samples, 0)
    assert torch.equal(plain.targets, flags)
    for kind in ("mixup", "cutmix"):
        found = Augmenter(options([{"kind": kind, "alpha": 1.0, "probability": 1.0}]), samples, 4, 2)(samples, 0)
        torch.testing.assert_close(found.inputs["images"].mean((1, 2, 3)) / 200, found.targets[:, 0])
        assert found.targets[:, 2:].tolist() == flags[:, 2:].tolist()


def test_mixup_of_rows_mixes_their_numbers() -> None:
    rows = torch.arange(12.0).view(6, 2)
    samples = whole_split({"table": rows}, 10 * rows)
    found = Augmenter(options([{"kind": "mixup", "alpha": 1.0}]), samples, None, 2)(samples, 0)
    torch.testing.assert_close(found.targets, 10 * found.inputs["table"])
    assert not torch.equal(found.inputs["table"], rows)


def test_self_mix_keeps_the_label() -> None:
    found = of_images([{"kind": "crop"}, {"kind": "self-mix", "alpha": 1.0}])(
        whole_split({"images": IMAGES}, LABELS), 0
    )
    torch.testing.assert_close(found.targets, torch.nn.functional.one_hot(LABELS, 4).float())


def test_of_several_mixes_each_sample_has_one() -> None:
    count = 400
    images = torch.arange(count).view(-1, 1, 1, 1).expand(count, 1, 8, 8).float()
    samples = whole_split({"images": images}, torch.zeros(count, dtype=torch.int64))
    both = options([{"kind": "mixup", "alpha": 1.0}, {"kind": "cutmix", "probability": 1.0}])
    found = Augmenter(both, samples, 2, 2)(samples, 0).inputs["images"].flatten(1)
    blended = (found[:, 0] == found[:, 1:].T).all(0) & (found[:, 0] != images[:, 0, 0, 0])
    assert 150 < int(blended.sum()) < 250
    values = [row.unique().numel() for row in found]
    assert max(values) == 2


POINTS = torch.rand((23, 6), generator=RANDOM)


def of_points(steps: list[dict[str, Any]]) -> Batch:
    samples = whole_split({"images": IMAGES}, POINTS)
    return Augmenter(options(steps), samples, None, 5, points=True)(samples, 0)


def test_points_move_with_the_window() -> None:
    marked = torch.zeros((30, 1, 12, 10), dtype=torch.uint8)
    marked[:, 0, 5, 4] = 255
    targets = torch.tensor([[4.5 / 10, 5.5 / 12]]).repeat(30, 1)
    samples = whole_split({"images": marked}, targets)
    found = Augmenter(options([{"kind": "crop", "padding": 3}]), samples, None, 5, points=True)(samples, 0)
    for image, point in zip(found.inputs["images"], found.targets, strict=True):
        row, column = image[0].nonzero()[0].tolist()
        torch.testing.assert_close(point, torch.tensor([(column + 0.5) / 10, (row + 0.5) / 12]))


def test_a_mirror_swaps_pairs_of_points() -> None:
    found = of_points([{"kind": "flip", "probability": 1.0, "pairs": [[0, 2]]}])
    assert torch.equal(found.inputs["images"], IMAGES.flip(3).float())
    before, after = POINTS.view(-1, 3, 2), found.targets.view(-1, 3, 2)
    torch.testing.assert_close(after[:, :, 0], 1 - before[:, [2, 1, 0], 0])
    assert torch.equal(after[:, :, 1], before[:, [2, 1, 0], 1])


# --- texts ---

IDS = torch.tensor([[2, 11, 12, 13, 3, 0, 0, 0]]).repeat(60, 1)
WORD_OF = torch.tensor([[-1, 0, 1, 1, -1, -1, -1, -1]], dtype=torch.int32).repeat(60, 1)
OTHER_IDS = torch.tensor([[7, 8, 9, 1]]).repeat(60, 1)
OTHER_WORD_OF = torch.tensor([[0, 0, 1, -1]], dtype=torch.int32).repeat(60, 1)
TEXTS = {VIEW: IDS, WORDS + VIEW: WORD_OF, "tokens:b": OTHER_IDS, f"{WORDS}tokens:b": OTHER_WORD_OF}
SPECIAL = {VIEW: Special(0, 99), "tokens:b": Special(1, 98)}


def of_texts(kind: str, share: float) -> Batch:
    samples = whole_split(TEXTS, torch.zeros(60, dtype=torch.int64))
    return Augmenter(options([{"kind": kind, "share": share}]), samples, 2, 5, SPECIAL)(samples, 0)


def test_all_tokens_of_a_word_are_masked_in_every_view() -> None:
    found = of_texts("token-mask", 0.5).inputs
    assert set(found) == {VIEW, "tokens:b"}
    looks = {(tuple(a), tuple(b)) for a, b in zip(found[VIEW].tolist(), found["tokens:b"].tolist(), strict=True)}
    assert looks == {
        ((2, 11, 12, 13, 3, 0, 0, 0), (7, 8, 9, 1)),
        ((2, 99, 12, 13, 3, 0, 0, 0), (98, 98, 9, 1)),
        ((2, 11, 99, 99, 3, 0, 0, 0), (7, 8, 98, 1)),
    }


def test_deleted_words_leave_no_hole() -> None:
    found = of_texts("token-delete", 0.5).inputs
    looks = {(tuple(a), tuple(b)) for a, b in zip(found[VIEW].tolist(), found["tokens:b"].tolist(), strict=True)}
    assert looks == {
        ((2, 11, 12, 13, 3, 0, 0, 0), (7, 8, 9, 1)),
        ((2, 12, 13, 3, 0, 0, 0, 0), (9, 1, 1, 1)),
        ((2, 11, 3, 0, 0, 0, 0, 0), (7, 8, 1, 1)),
    }


def test_words_are_chosen_at_their_share() -> None:
    count, words = 300, 40
    ids = torch.full((count, words), 5)
    inputs = {VIEW: ids, WORDS + VIEW: torch.arange(words, dtype=torch.int32).repeat(count, 1)}
    samples = whole_split(inputs, torch.zeros(count, dtype=torch.int64))
    augmenter = Augmenter(options([{"kind": "token-mask", "share": 0.3}]), samples, 2, 5, {VIEW: Special(0, 9)})
    masked = augmenter(samples, 0).inputs[VIEW] == 9
    assert masked.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert masked.float().mean(0).std() < 0.05
