"""Jobs on pairs of images: training by pairs, and evaluation by verification."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from app.recipe.job import JobSpec
from tests.worker.distributed.ranks_stage import Act, play_together
from tests.worker.tasks.test_image_embedding import DISTILLED, images
from tests.worker.tasks.test_image_embedding import stage as stage_classes
from tests.worker.training.builders import finished, play, require_same_bits
from worker.metrics.labelled_vectors import pair_verification
from worker.protocol import Assignment, Failed, Finished, Log
from worker.students.weights import load_model

Document = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]
PAIRS = 80


def pairs(seed: int = 0, **changes: Any) -> Arrays:
    """Pairs of the images of eight classes; every other one is of one class."""
    pixels, labels = images(seed)
    random = np.random.default_rng(seed + 7)
    first = random.permutation(np.resize(np.arange(len(labels)), PAIRS))
    same = np.arange(PAIRS) % 2
    second = [
        random.choice(np.flatnonzero((labels == labels[one]) == wanted))
        for one, wanted in zip(first, same, strict=True)
    ]
    return {"x": pixels[first], "other": pixels[second], "y": same, **changes}


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, arrays: Arrays) -> None:
    columns = {name: pa.array([png(image) for image in arrays[name]]) for name in ("x", "other")}
    pq.write_table(pa.table({**columns, "y": pa.array(arrays["y"].astype(bool))}), path)


TABLE: Document = {"format": "parquet", "input_columns": ["x", "other"], "label_columns": ["y"]}


def stage(folder: Path, arrays: Arrays | None = None, table: bool = False, **changes: Any) -> Assignment:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = pairs() if arrays is None else arrays
    if table:
        write_parquet(folder / "pairs", arrays)
    else:
        np.savez(folder / "pairs.npz", **arrays)
    inputs = {"pairs": "pairs" if table else "pairs.npz", **changes.pop("inputs", {})}
    recipe = {"losses": [{"kind": "pair-score"}], "epochs": 2, "batch_size": 16, **changes.pop("recipe", {})}
    data = {"train": "pairs", **(TABLE if table else {"second_key": "other"}), **changes.pop("data", {})}
    job: Document = {
        **{"task": "image-embedding", "data": data, "student": {"architecture": "mlp", "hidden": [8]}, "seed": 3},
        **{"embedding": {"dimensions": 5, "normalise": True}, "export": ["safetensors"], "recipe": recipe},
    }
    return Assignment(spec=JobSpec.model_validate(job | changes), inputs=inputs)


def report_of(bundle: Path) -> Document:
    told: Document = json.loads((bundle / "report.json").read_text())
    return told


def refusal(assignment: Assignment, folder: Path) -> Failed:
    word = play(assignment, folder).word
    assert isinstance(word, Failed)
    assert word.fault == "user"
    return word


def test_training_by_pairs_brings_images_of_one_class_together(tmp_path: Path) -> None:
    held = pairs(5)
    np.savez(tmp_path / "held.npz", **held)
    recipe = {"epochs": 40, "optimizer": {"kind": "adamw", "lr": 1e-2}}
    made = stage(tmp_path, recipe=recipe, data={"eval": "held"}, inputs={"held": "held.npz"})
    bundle = finished(tmp_path, made)
    report = report_of(bundle)
    assert report["student"]["auc"] > 0.9
    assert not {"map_at_r", "recall_at_1", "class_mean_accuracy"} & report["student"].keys()
    assert report["epochs"]["by"] == "auc"
    rows = np.stack([held["x"], held["other"]], 1).reshape(-1, 1, *held["x"].shape[1:])
    figures = {"pairs": PAIRS, "same": PAIRS // 2, "images": len(np.unique(rows, axis=0))}
    assert report["data"]["pairs"]["evaluated_pairs"] == figures
    with torch.no_grad():
        vectors = load_model(bundle).eval()(torch.from_numpy(rows))
    for name, value in pair_verification(vectors, torch.from_numpy(held["y"]), ("1e-2", "1e-3")).items():
        assert report["student"][name] == pytest.approx(float(value), abs=1e-3)


def test_a_table_and_an_archive_of_the_same_pairs_give_the_same_model(tmp_path: Path) -> None:
    one, other = (finished(tmp_path / str(table), stage(tmp_path / str(table), table=table)) for table in (0, 1))
    for name, values in load_model(one).state_dict().items():
        assert torch.equal(values, load_model(other).state_dict()[name])
    samples = report_of(one)["samples"]
    assert samples == report_of(other)["samples"] == {"train": 64, "eval": 16}
    assert report_of(one)["data"]["pairs"]["evaluated_pairs"]["same"] == 8


def test_a_stopped_job_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    augment = [{"kind": "crop", "padding": 1}, {"kind": "flip"}]
    require_same_bits(partial(stage, data={"augment": augment}), tmp_path)


def test_micro_batches_and_two_processes_take_the_same_steps(tmp_path: Path) -> None:
    whole, parts, two = tmp_path / "whole", tmp_path / "parts", tmp_path / "two"
    finished(whole, stage(whole))
    finished(parts, stage(parts, recipe={"accumulate": 3}))
    assert isinstance(play_together({"two": Act(stage(two), two)})["two"].word, Finished)
    one = load_model(whole / "bundle").state_dict()
    for folder in (parts, two):
        for name, values in load_model(folder / "bundle").state_dict().items():
            torch.testing.assert_close(one[name], values, rtol=1e-4, atol=1e-5)


def test_a_teacher_of_classes_teaches_on_pairs(tmp_path: Path) -> None:
    teacher = finished(tmp_path / "teacher", stage_classes(tmp_path / "teacher"))
    losses = [{"kind": "pair-score"}, *DISTILLED[1:]]
    more = {"teacher": {"model": "old"}, "inputs": {"old": str(teacher)}}
    report = report_of(finished(tmp_path / "job", stage(tmp_path / "job", recipe={"losses": losses}, **more)))
    assert {"auc", "teacher_correlation"} <= report["student"].keys()
    assert 0.0 <= report["teacher"]["auc"] <= 1.0


def test_a_student_that_learns_from_classes_is_evaluated_by_pairs(tmp_path: Path) -> None:
    np.savez(tmp_path / "held.npz", **pairs(5))
    data = {"eval": "held", "eval_second_key": "other", "unseen_classes": None}
    made = stage_classes(tmp_path, data=data, inputs={"held": "held.npz"})
    report = report_of(finished(tmp_path, made))
    assert report["data"]["pairs"]["trained_classes"] == 8
    assert report["data"]["pairs"]["evaluated_pairs"]["pairs"] == PAIRS
    assert report["epochs"]["by"] == "auc"


def test_a_student_that_learns_from_pairs_is_evaluated_by_classes(tmp_path: Path) -> None:
    pixels, labels = images(1)
    table = pa.table({"picture": pa.array([png(image) for image in pixels]), "name": pa.array(labels)})
    pq.write_table(table, tmp_path / "held")
    data = {"eval": "held", "eval_input_columns": ["picture"], "eval_label_columns": ["name"]}
    report = report_of(finished(tmp_path, stage(tmp_path, table=True, data=data, inputs={"held": "held"})))
    assert report["data"]["pairs"]["evaluated_classes"] == 8
    assert report["epochs"]["by"] == "map_at_r"


def test_images_on_both_sides_of_the_split_are_told(tmp_path: Path) -> None:
    run = play(stage(tmp_path), tmp_path)
    assert isinstance(run.word, Finished)
    (told,) = [log.message for log in run.of(Log) if "have an image that is trained on" in log.message]
    assert told.split(" ")[1:3] == ["of", "16"]


def other_size(arrays: Arrays) -> Arrays:
    return {**arrays, "other": arrays["other"][:, :5]}


REFUSED: dict[str, tuple[Callable[[Arrays], Arrays], bool, str, str]] = {
    "a label": (lambda arrays: {**arrays, "y": np.arange(PAIRS)}, False, "data.train", "label of pair 2 of data.train"),
    "one label alone": (lambda arrays: {**arrays, "y": np.ones(PAIRS, int)}, False, "data.train", "have the label 1"),
    "no second array": (
        lambda arrays: {name: arrays[name] for name in "xy"},
        False,
        "data.second_key",
        "has no array 'other' (accepted: one of x, y)",
    ),
    "another size": (other_size, False, "data.second_key", "accepted: shape (80, 6, 6) and dtype"),
    "another size in a table": (other_size, True, "data.image_size", "accepted: one size, or data.image_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pairs_that_do_not_fit_end_the_job_by_their_field(tmp_path: Path, case: str) -> None:
    change, table, param, message = REFUSED[case]
    word = refusal(stage(tmp_path, change(pairs()), table=table), tmp_path)
    assert (word.code, word.param) == ("invalid_data", param)
    assert message in word.message


def test_columns_without_images_end_the_job_by_their_field(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([png(pairs()["x"][0])] * 4), "other": ["a", "b", "c", "d"], "y": [0, 1, 0, 1]})
    assignment = stage(tmp_path, table=True)
    pq.write_table(table, tmp_path / "pairs")
    word = refusal(assignment, tmp_path)
    assert (word.code, word.param) == ("invalid_data", "data.input_columns")
    assert "column 'other' of data.train has no images" in word.message
