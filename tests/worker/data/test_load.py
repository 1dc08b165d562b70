"""From archives to checked tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from app.recipe.data.sources import ImageData
from app.recipe.data.targets import SoftLandmarks
from app.recipe.data.tokenizers import WordPiece
from app.recipe.job import JobSpec, Recipe
from app.recipe.losses import CrossEntropy, Kd, Mse
from app.recipe.students.architectures import Mlp, Vit
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TableInput, TextInput
from app.recipe.tasks import TASKS
from app.recipe.teachers.teacher import Teacher
from tests.worker.data.formats.builders import packed, picture
from tests.worker.data.loading import load_task
from worker.data.augment import build_augmenter
from worker.data.formats.columns import TextSamples
from worker.data.soft_landmarks import soft_landmarks
from worker.data.statistics import fit_preprocessing
from worker.data.task_data import TaskData
from worker.data.tokens import train_tokenizer
from worker.errors import UserError

RANDOM = np.random.default_rng(0)
IMAGES, LABELS = RANDOM.integers(0, 256, (40, 4, 6), dtype=np.uint8), np.arange(40) % 4


def config(classes: int = 4, channels: int = 1, side: int = 4) -> ModelConfig:
    return ModelConfig(
        architecture=Mlp(),
        input=ImageInput(channels=channels, height=side, width=6),
        preprocessing=Preprocessing(mean=[0.0] * channels, std=[1.0] * channels),
        classes=classes,
    )


def load(
    folder: Path,
    train: dict[str, Any],
    evaluation: dict[str, Any] | None = None,
    teacher: ModelConfig | None = None,
    student: Mlp | Vit | None = None,
    **data: Any,
) -> TaskData:
    np.savez(folder / "train.npz", **train)
    if evaluation is not None:
        np.savez(folder / "eval.npz", **evaluation)
        data["eval"] = "eval"
    job = JobSpec(
        data=ImageData(train="train", **data),
        student=student or Mlp(),
        teacher=Teacher(model="t") if teacher else None,
        recipe=Recipe(losses=[Kd() if teacher else CrossEntropy()]),
    )
    files = {"train": folder / "train.npz", "eval": folder / "eval.npz"}
    return load_task(job, files, {"t": teacher} if teacher else {}, seed=7)


def refusal(folder: Path, *args: Any, **more: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load(folder, *args, **more)
    return caught.value


def test_gray_images_become_one_channel_with_a_held_out_share(tmp_path: Path) -> None:
    task = load(tmp_path, {"x": IMAGES, "y": LABELS})
    assert task.train.inputs["images"].shape == (32, 1, 4, 6)
    assert task.eval.inputs["images"].shape == (8, 1, 4, 6)
    assert task.train.inputs["images"].dtype == torch.uint8
    assert task.eval.targets.bincount().tolist() == [2, 2, 2, 2]
    assert task.model.input == ImageInput(channels=1, height=4, width=6)
    assert (task.model.classes, task.notes) == (4, [])


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_layouts_end_up_the_same(tmp_path: Path, layout: str) -> None:
    channels_first = RANDOM.random((10, 3, 4, 6))
    images = channels_first if layout == "NCHW" else np.moveaxis(channels_first, 1, 3)
    task = load(tmp_path, {"x": images, "y": LABELS[:10]}, {"x": images, "y": LABELS[:10]}, layout=layout)
    torch.testing.assert_close(task.train.inputs["images"], torch.from_numpy(channels_first).float())


def test_preprocessing_is_fitted_on_the_training_samples_alone(tmp_path: Path) -> None:
    task = load(tmp_path, {"x": IMAGES, "y": LABELS}, {"x": IMAGES[:4] // 2, "y": LABELS[:4]})
    scaled = IMAGES / 255
    found = task.model.preprocessing
    assert found.scale == 1 / 255
    assert found.mean == pytest.approx([scaled.mean()])
    assert found.std == pytest.approx([scaled.std()])


def test_float_images_are_not_scaled_and_constant_channels_do_not_divide_by_zero() -> None:
    images = torch.stack([torch.randn(50, 4, 4) * 3 + 1, torch.full((50, 4, 4), 5.0)], dim=1)
    found = fit_preprocessing(images)
    assert found.scale == 1.0
    assert found.mean[1] == 5.0
    assert found.std[1] > 0


def test_labels_outside_the_classes_are_named_with_index_and_value(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[17] = 9
    error = refusal(tmp_path, {"x": IMAGES, "y": labels}, classes=4)
    assert "label 9 at index 17" in error.message
    assert "0..3" in error.message
    assert (error.code, error.param) == ("invalid_data", "data.train")


def test_negative_labels_are_refused(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[5] = -1
    assert "label -1 at index 5" in refusal(tmp_path, {"x": IMAGES, "y": labels}).message


def test_huge_unsigned_labels_are_refused(tmp_path: Path) -> None:
    labels = LABELS.astype(np.uint64)
    labels[0] = 2**64 - 1
    assert "largest label is 18446744073709551615" in refusal(tmp_path, {"x": IMAGES, "y": labels}).message


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_in_float32_are_named_with_their_index(tmp_path: Path, value: float) -> None:
    images = IMAGES.astype(np.float64)
    images[3, 1, 2] = value
    error = refusal(tmp_path, {"x": images[:8], "y": LABELS[:8]}, {"x": IMAGES.astype(np.float32), "y": LABELS})
    assert "at index (3, 1, 2)" in error.message
    assert str(value) in error.message
    assert error.param == "data.train"


def test_faults_of_the_evaluation_file_blame_it(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"x": IMAGES, "y": LABELS}, {"x": IMAGES, "y": LABELS + 3}, classes=4)
    assert error.param == "data.eval"


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"x": IMAGES[:0], "y": LABELS[:0]})
    assert error.param == "data.train"
    assert "empty" in error.message


def test_one_class_is_no_classification(tmp_path: Path) -> None:
    assert "at least two classes" in refusal(tmp_path, {"x": IMAGES, "y": LABELS * 0}).message


def test_a_missing_array_is_named_with_what_there_is(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"pictures": IMAGES, "y": LABELS})
    assert error.param == "data.input_key"
    assert "pictures" in error.message


def test_the_teacher_decides_the_classes(tmp_path: Path) -> None:
    task = load(tmp_path, {"x": IMAGES, "y": LABELS}, teacher=config(classes=6))
    assert task.model.classes == 6
    assert task.notes == ["only 4 of 6 classes have a training sample; without one: '4', '5'"]


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"x": IMAGES, "y": LABELS}, teacher=config(classes=6), classes=4)
    assert error.param == "data.classes"
    assert "6" in error.message


def test_a_teacher_of_images_of_other_channels_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"x": IMAGES, "y": LABELS}, teacher=config(channels=3))
    assert (error.code, error.param) == ("invalid_teacher", "teacher.model")


def test_a_teacher_of_images_of_another_size_is_taken(tmp_path: Path) -> None:
    task = load(tmp_path, {"x": IMAGES, "y": LABELS}, teacher=config(side=5))
    assert task.model.input == ImageInput(channels=1, height=4, width=6)


def test_a_patch_that_does_not_divide_the_image_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"x": IMAGES, "y": LABELS}, student=Vit(patch_size=4))
    assert (error.code, error.param) == ("invalid_job", "student.patch_size")


def test_only_the_targets_to_train_on_are_softened(tmp_path: Path) -> None:
    points = RANDOM.random((40, 3, 2)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=IMAGES, y=points)
    np.savez(tmp_path / "eval.npz", x=IMAGES, y=points)
    spec = SoftLandmarks(variance=0.5)
    task = load_task(
        JobSpec(
            task="keypoints",
            data=ImageData(train="train", eval="eval", targets_transform=spec),
            student=Mlp(),
            recipe=Recipe(losses=[Mse()]),
        ),
        {name: tmp_path / f"{name}.npz" for name in ("train", "eval")},
        {},
        seed=7,
    )
    labels = torch.from_numpy(points).flatten(1)
    assert torch.equal(task.eval.targets, labels)
    assert torch.equal(task.train.targets, soft_landmarks(labels, spec))
    assert not torch.allclose(task.train.targets, labels, atol=0.1)


# --- other tasks and formats ---


BERT = {
    "architecture": "transformers",
    "config": {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1},
}


def job_for(task: str, data: dict[str, Any], teacher: bool = False) -> JobSpec:
    labels = "cross-entropy" if TASKS[task].answers == "classes" else "mse"
    losses = [{"kind": labels}, *([{"kind": "kd"}] if teacher else [])]
    student = BERT if task == "text-classification" else {"architecture": "mlp"}
    document = {"task": task, "data": {"train": "train", **data}, "student": student}
    more = {"teacher": {"model": "t"}} if teacher else {}
    return JobSpec.model_validate({**document, **more, "recipe": {"losses": losses}})


def test_a_table_with_numbers_to_answer(tmp_path: Path) -> None:
    rows, answers = RANDOM.random((20, 3)) * 5, np.stack([np.arange(20.0), np.full(20, 3.0)], axis=1)
    np.savez(tmp_path / "t.npz", x=rows, y=answers)
    task = load_task(job_for("regression", {}), {"train": tmp_path / "t.npz"}, {}, seed=1)
    assert task.train.inputs["table"].shape == (16, 3)
    assert (task.model.targets, task.model.classes, task.model.input) == (2, None, TableInput(columns=3))
    scaling = task.model.target_scaling
    assert scaling is not None
    assert scaling.mean == pytest.approx(task.train.targets.mean(0).tolist())
    assert scaling.std == pytest.approx([float(task.train.targets[:, 0].std(correction=0)), 1.0])
    assert task.model.preprocessing is not None
    assert task.model.preprocessing.mean == pytest.approx(task.train.inputs["table"].mean(0).tolist())
    again = load_task(job_for("regression", {}), {"train": tmp_path / "t.npz"}, {}, seed=1)
    other = load_task(job_for("regression", {}), {"train": tmp_path / "t.npz"}, {}, seed=2)
    assert torch.equal(task.eval.targets, again.eval.targets)
    assert not torch.equal(task.eval.targets, other.eval.targets)


def test_keypoints_are_flat_and_x_before_y(tmp_path: Path) -> None:
    points = RANDOM.random((40, 3, 2))
    np.savez(tmp_path / "t.npz", x=IMAGES, y=points)
    files = {"train": tmp_path / "t.npz"}
    task = load_task(job_for("keypoints", {"eval": "train"}), files, {}, seed=1)
    torch.testing.assert_close(task.train.targets, torch.from_numpy(points.reshape(40, 6)).float())
    points[7, 1, 0] = np.nan
    np.savez(tmp_path / "t.npz", x=IMAGES, y=points)
    with pytest.raises(UserError, match=r"'y' has nan at index \(7, 1, 0\)"):
        load_task(job_for("keypoints", {"eval": "train"}), files, {}, seed=1)


def text_file(folder: Path, name: str, labels: list[str]) -> Path:
    lines = [f"some {label} words number {index},{label}" for index, label in enumerate(labels)]
    (folder / name).write_text("text,label\n" + "\n".join(lines))
    return folder / name


CSV = {"format": "csv", "input_columns": ["text"], "label_columns": ["label"], "max_length": 12}


def test_names_of_classes_are_sorted_and_texts_become_tokens(tmp_path: Path) -> None:
    files = {"train": text_file(tmp_path, "a", ["b", "c", "a"] * 5), "e": text_file(tmp_path, "e", ["c", "a"])}
    wordpiece = {"tokenizer": {"kind": "wordpiece", "vocabulary": 100}}
    task = load_task(job_for("text-classification", {**CSV, **wordpiece, "eval": "e"}), files, {}, seed=1)
    assert task.model.class_names == ["a", "b", "c"]
    assert task.eval.targets.tolist() == [2, 0]
    assert task.readers is not None
    assert task.input_key is not None
    expected = TextInput(length=12, vocabulary=task.readers.student.vocabulary, pad=0, separator=3)
    assert task.model.input == task.readers.input == expected
    assert task.train.inputs[task.input_key].shape == (15, 8)
    assert list(task.train.inputs) == [task.input_key]


def test_a_label_that_is_no_class_is_named(tmp_path: Path) -> None:
    files = {"train": text_file(tmp_path, "a", ["b", "a"] * 5), "e": text_file(tmp_path, "e", ["a", "z"])}
    with pytest.raises(UserError, match=r"label .z. at index 1 of data\.eval") as caught:
        load_task(job_for("text-classification", {**CSV, "eval": "e"}), files, {}, seed=1)
    assert caught.value.param == "data.eval"


def text_teacher(folder: Path, length: int, texts: TextSamples, vocabulary: int = 120) -> ModelConfig:
    folder.mkdir()
    tokenizer = train_tokenizer(WordPiece(vocabulary=vocabulary), texts)
    tokenizer.save(folder)
    given = TextInput(length=length, vocabulary=tokenizer.vocabulary)
    return ModelConfig(task="text-classification", architecture=Mlp(), input=given, classes=2, class_names=["b", "a"])


def test_the_teachers_tokenizer_order_and_length_are_taken(tmp_path: Path) -> None:
    config = text_teacher(tmp_path / "t", 10, TextSamples(["some a b words number 1 2 3"] * 3))
    files = {"train": text_file(tmp_path, "a", ["b", "a"] * 5), "t": tmp_path / "t"}
    job = job_for("text-classification", CSV, teacher=True)
    task = load_task(job, files, {"t": config}, seed=1)
    assert task.model.class_names == ["b", "a"]
    assert task.input_key == task.input_key_of("t")
    assert isinstance(task.model.input, TextInput)
    assert task.model.input.length == 10


def test_with_a_tokenizer_of_its_own_there_are_two_views(tmp_path: Path) -> None:
    config = text_teacher(tmp_path / "t", 10, TextSamples(["other words"] * 3), vocabulary=600)
    files = {"train": text_file(tmp_path, "a", ["b", "a"] * 5), "t": tmp_path / "t"}
    data = {**CSV, "tokenizer": {"kind": "bpe", "vocabulary": 600}, "augment": [{"kind": "token-mask"}]}
    task = load_task(job_for("text-classification", data, teacher=True), files, {"t": config}, seed=1)
    input_keys = {task.input_key, task.input_key_of("t")}
    assert len(input_keys) == 2
    assert set(task.train.inputs) == input_keys | {f"words:{input_key}" for input_key in input_keys}
    augmenter = build_augmenter(job_for("text-classification", data, teacher=True), task, 1)
    assert augmenter is not None
    assert set(augmenter(task.train, 0).inputs) == input_keys


def test_there_is_no_tokenizer_of_a_teacher_without_one(tmp_path: Path) -> None:
    files = {"train": text_file(tmp_path, "a", ["b", "a"] * 5)}
    with pytest.raises(UserError) as caught:
        load_task(job_for("text-classification", {**CSV, "tokenizer": {"kind": "teacher"}}), files, {}, seed=1)
    assert caught.value.param == "data.tokenizer"


def test_a_folder_of_images_is_held_out_by_class(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": picture(10 * i) for name in ("cat", "dog") for i in range(10)}
    path = packed(tmp_path / "a.tar", files)
    task = load_task(job_for("image-classification", {"format": "image-folder"}), {"train": path}, {}, seed=1)
    assert task.model.class_names == ["cat", "dog"]
    assert task.eval.targets.bincount().tolist() == [2, 2]
    assert task.model.input == ImageInput(channels=3, height=6, width=5)


def test_what_is_found_after_reading_is_held_against_the_job(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", {"cat/1.png": picture(1), "dog/1.png": picture(2)})
    data = {"format": "image-folder", "augment": [{"kind": "crop", "padding": 9}]}
    with pytest.raises(UserError) as caught:
        load_task(job_for("image-classification", data), {"train": path}, {}, seed=1)
    assert caught.value.param == "data.augment[0].padding"


def test_two_splits_of_one_saved_set(tmp_path: Path) -> None:
    both = {name: Dataset.from_dict({"text": ["a b", "c"] * n, "label": ["x", "y"] * n}) for name, n in SPLITS.items()}
    DatasetDict(both).save_to_disk(tmp_path / "set")
    found = [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    path = packed(tmp_path / "a.zip", {str(one.relative_to(tmp_path)): one.read_bytes() for one in found})
    data = {**CSV, "format": "hf-dataset", "split": "train", "eval_split": "dev"}
    task = load_task(job_for("text-classification", data), {"train": path}, {}, seed=1)
    assert (len(task.train), len(task.eval)) == (6, 4)


SPLITS = {"train": 3, "dev": 2}


def test_numbers_are_called_after_their_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,width,height\n" + "".join(f"{n},{n % 3},{n % 5}\n" for n in range(20)))
    data = {"train": "t.csv", "format": "csv", "input_columns": ["x"], "label_columns": ["height", "width"]}
    job = JobSpec.model_validate(
        {
            "task": "regression",
            "data": data,
            "student": {"architecture": "mlp"},
            "recipe": {"losses": [{"kind": "mse"}]},
        }
    )
    task = load_task(job, {"t.csv": tmp_path / "t.csv"}, {}, seed=1)
    assert task.model.target_names == ["height", "width"]
