"""Pseudo labels of training images: clusters that are found again, and stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.recipe.data.pseudo_labels import PseudoLabels
from app.recipe.job import JobSpec
from tests.worker.tasks.test_image_embedding import CLASSES, images
from tests.worker.tasks.test_self_supervised import report_of, stage
from tests.worker.training.builders import finished, require_same_bits
from worker.data.batches import Batch, whole_split
from worker.data.randomness import generator
from worker.errors import UserError
from worker.students.weights import load_model
from worker.training.pseudo_labels import LabelStore, codes, open_labels


def samples() -> tuple[Batch, torch.Tensor]:
    pixels, labels = images()
    return whole_split({"images": torch.from_numpy(pixels).unsqueeze(1)}, torch.zeros(len(pixels))), torch.from_numpy(
        labels
    )


def job(**changes: Any) -> JobSpec:
    recipe = {"losses": [{"kind": "ntxent"}], "batch_size": CLASSES, "pseudo_labels": changes}
    data = {"train": "f", "augment": [{"kind": "flip"}]}
    document = {"task": "self-supervised", "data": data, "student": {"architecture": "mlp"}, "recipe": recipe}
    return JobSpec.model_validate(document)


def labels_of(seed: int = 3, **changes: Any) -> torch.Tensor:
    found = open_labels(job(**changes), samples()[0], {}, seed, resumed=False)
    assert found is not None
    return found.labels


def test_codes_of_similar_images_are_near_each_other() -> None:
    batch, classes = samples()
    found = codes(PseudoLabels(epochs=30, dimensions=8), batch, 3)
    assert found.shape == (96, 8)
    distances = torch.cdist(found, found)
    same = classes == classes.unsqueeze(1)
    assert float(distances[same].mean()) < 0.6 * float(distances[~same].mean())


def test_labels_follow_from_the_seed_and_separate_patterns() -> None:
    found, (_, classes) = labels_of(clusters=24), samples()
    assert torch.equal(found, labels_of(clusters=24))
    assert not torch.equal(found, labels_of(seed=4, clusters=24))
    assert int(found.max()) < 24
    purest = sum(int(classes[found == label].bincount().max()) for label in torch.unique(found).tolist())
    assert purest / len(classes) > 0.7


def test_without_a_number_there_are_as_many_clusters_as_a_batch_has_places() -> None:
    assert int(labels_of().max()) < CLASSES


def test_more_clusters_than_images_are_refused_by_their_field() -> None:
    with pytest.raises(UserError, match="is 97, and there are 96 training images") as error:
        labels_of(clusters=97)
    assert error.value.param == "recipe.pseudo_labels.clusters"


def test_a_job_without_them_has_none_and_a_resumed_one_leaves_them_to_the_checkpoint() -> None:
    plain = job().model_copy(update={"recipe": job().recipe.model_copy(update={"pseudo_labels": None})})
    assert open_labels(plain, samples()[0], {}, 3, resumed=False) is None
    resumed = open_labels(job(), samples()[0], {}, 3, resumed=True)
    assert resumed is not None
    order = resumed.order
    resumed.load_state_dict({"labels": torch.arange(96) % CLASSES})
    drawn = order(generator(0, "order", 0))
    assert all(len(torch.unique(part % CLASSES)) == CLASSES for part in torch.split(drawn, CLASSES))


def test_figures_count_clusters_and_repeats() -> None:
    store = LabelStore(torch.tensor([0, 0, 0, 2]), 2)
    assert store.figures(0) == {"clusters": 2, "largest": 3, "repeated_share": 0.25}


@pytest.mark.parametrize("source", ["autoencoder", "teacher"])
def test_a_job_learns_from_them_and_goes_on_to_the_same_bits(tmp_path: Path, source: str) -> None:
    teacher = finished(tmp_path / "teacher", stage(tmp_path / "teacher"))

    def make(folder: Path) -> Any:
        recipe = {"pseudo_labels": {"source": source, "clusters": 20, "epochs": 3}}
        more = {"teacher": {"model": "old"}, "inputs": {"old": str(teacher)}} if source == "teacher" else {}
        return stage(folder, recipe=recipe, **more)

    require_same_bits(make, tmp_path)
    report = report_of(tmp_path / "straight" / "bundle")
    assert 2 <= report["train"]["pseudo_labels"]["clusters"] <= 20
    assert not any("pseudo" in name for name in load_model(tmp_path / "straight" / "bundle").state_dict())
    plain = load_model(finished(tmp_path / "plain", stage(tmp_path / "plain"))).state_dict()
    found = load_model(tmp_path / "straight" / "bundle").state_dict()
    assert any(not torch.equal(values, found[name]) for name, values in plain.items())
