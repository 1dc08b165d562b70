"""The picture of anomaly maps, and its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.recipe.diagnostics import AnomalyMaps
from app.recipe.students.architectures import InpFormerNetwork, Vit
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.data.batches import Batch, whole_split
from worker.diagnostics import run_diagnostics
from worker.diagnostics.anomaly_maps import AnomalyMapsAnalysis
from worker.diagnostics.base import DiagnosticInputs, HeldOutPart
from worker.students.model import Model
from worker.tasks.prediction import predict

COUNT = 9


def model() -> Model:
    network = InpFormerNetwork(
        layers=[["blocks.0"]],
        prototypes=2,
        heads=2,
        map_size=4,
        encoder=Vit(patch_size=4, width=8, depth=1, heads=2),
        encoder_outputs=2,
    )
    torch.manual_seed(0)
    return Model(
        ModelConfig(
            task="anomaly-detection",
            architecture=network,
            input=ImageInput(channels=3, height=8, width=12),
            preprocessing=Preprocessing(mean=[0.5] * 3, std=[0.5] * 3),
            targets=network.outputs,
        )
    ).eval()


def samples(*, masks: bool) -> Batch:
    """Images of which every third is anomalous."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, 8, 12), generator=random, dtype=torch.uint8)
    targets = (torch.arange(COUNT) % 3 == 0).long()
    if masks:
        marked = torch.zeros(COUNT, 8, 12, dtype=torch.uint8)
        marked[::3, 2:5, 3:9] = 1
        targets = marked
    return whole_split({"images": images}, targets)


def inputs(held: Batch) -> DiagnosticInputs:
    student = model()
    return DiagnosticInputs(
        lambda batch: predict(student, batch.inputs["images"]), HeldOutPart(held), None, 0, torch.device("cpu"), student
    )


@pytest.mark.parametrize("masks", [True, False])
def test_half_of_the_images_are_anomalous_from_the_highest_score_to_the_lowest(masks: bool) -> None:
    held = samples(masks=masks)
    scores = predict(model(), held.inputs["images"])[:, 0]
    found = AnomalyMapsAnalysis(AnomalyMaps(images=4))(inputs(held))
    anomalous = torch.arange(COUNT) % 3 == 0
    expected = []
    for half in (anomalous, ~anomalous):
        order = sorted(half.nonzero().flatten().tolist(), key=lambda number: -scores[number])
        expected += [order[0], order[-1]]
    assert [row["image"] for row in found.table] == expected
    assert [row["anomalous"] for row in found.table] == [True, True, False, False]
    assert [row["score"] for row in found.table] == pytest.approx([float(scores[number]) for number in expected])
    assert found.figures["anomalous"]["images"] == 3
    assert found.figures["normal"]["highest"] == pytest.approx(float(scores[~anomalous].max()))


def test_the_picture_has_a_panel_for_each_image_and_lies_in_the_folder(tmp_path: Path) -> None:
    held, student = samples(masks=True), model()
    diagnosed = run_diagnostics(
        [AnomalyMaps(images=6)],
        lambda batch: predict(student, batch.inputs["images"]),
        HeldOutPart(held),
        0,
        torch.device("cpu"),
        tmp_path,
        student,
    )
    assert diagnosed.pictures == ["anomaly-maps.png"]
    assert diagnosed.warnings == []
    with Image.open(tmp_path / "anomaly-maps.png") as picture:
        assert picture.size == (4 * 180, 2 * 180)
        pixels = np.asarray(picture.convert("RGB"))
    panels = [
        pixels[row * 180 : row * 180 + 180, column * 180 : column * 180 + 180] for row in (0, 1) for column in range(4)
    ]
    assert [bool((panel != 255).any()) for panel in panels] == [True] * 6 + [False] * 2


def test_normal_images_alone_have_a_picture_too() -> None:
    held = samples(masks=False)
    plain = whole_split(held.inputs, torch.zeros(COUNT, dtype=torch.int64))
    found = AnomalyMapsAnalysis(AnomalyMaps())(inputs(plain))
    assert set(found.figures) == {"normal"}
    assert len(found.table) == 4
