"""Parquet files and saved data sets."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from app.recipe.data.sources import Data
from app.recipe.tasks import TaskName
from tests.worker.data.formats.builders import PARAM, array, columns_of, encoded, options, packed, picture, refusal
from worker.data.formats import arrow, read_samples
from worker.data.formats.column_readers import UNLABELLED
from worker.data.formats.columns import Samples, TextSamples
from worker.errors import UserError


def parquet(inputs: list[str], labels: list[str], **more: Any) -> Data:
    return options("parquet", input_columns=inputs, label_columns=labels, **more)


def write(folder: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def read(folder: Path, columns: dict[str, Any], data: Data, task: TaskName) -> Samples:
    return read_samples(write(folder, columns), data, columns_of(task), PARAM)


def said(folder: Path, columns: dict[str, Any], data: Data, task: TaskName) -> str:
    return refusal(write(folder, columns), data, task).message


@pytest.mark.parametrize("labels", [["no", "yes"] * 4, pa.array(["no", "yes"] * 4).dictionary_encode()])
def test_texts_with_names_of_classes(tmp_path: Path, labels: Any) -> None:
    texts = [f"text {i}" for i in range(8)]
    found = read(tmp_path, {"t": texts, "y": labels, "z": [1] * 8}, parquet(["t"], ["y"]), "text-classification")
    assert found == Samples(TextSamples(texts), ["no", "yes"] * 4)


@pytest.mark.parametrize(
    ("labels", "kind"), [([0, 1, 2], pa.uint8()), ([0, 1, 2], pa.int64()), ([False, True, True], pa.bool_())]
)
def test_numbers_of_classes(tmp_path: Path, labels: list[Any], kind: pa.DataType) -> None:
    columns = {"t": ["a", "b", "c"], "y": pa.array(labels, kind)}
    found = read(tmp_path, columns, parquet(["t"], ["y"]), "text-classification")
    assert np.asarray(found.labels).tolist() == [int(label) for label in labels]


def test_columns_and_lists_of_numbers_are_a_table(tmp_path: Path) -> None:
    columns = {
        "a": pa.array([1, 2, 3, 4], pa.int8()),
        "b": pa.array([0.5, 1, 2, 3], pa.float64()),
        "v": pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32())),
        "f": pa.array([[7, 8]] * 4, pa.list_(pa.int32(), 2)),
        "y": pa.array([1.5, 2.5, 3.5, 4.5], pa.float16()),
    }
    found = read(tmp_path, columns, parquet(["a", "b", "v", "f"], ["y", "v"]), "regression")
    assert array(found)[1].tolist() == [2, 1, 1, 2, 7, 8]
    assert array(found).dtype == np.float32
    assert np.asarray(found.labels)[3].tolist() == [4.5, 1, 2]


@pytest.mark.parametrize("shape", ["bytes", "struct"])
def test_images_as_bytes_or_as_structs(tmp_path: Path, shape: str) -> None:
    images: list[Any] = [picture(shade) for shade in (1, 2, 3, 4)]
    if shape == "struct":
        images = [{"bytes": image, "path": "/etc/passwd"} for image in images]
    found = read(tmp_path, {"i": images, "y": [0, 1, 0, 1]}, parquet(["i"], ["y"]), "image-classification")
    assert array(found).shape == (4, 3, 6, 5)
    assert array(found)[:, 0, 0, 0].tolist() == [1, 2, 3, 4]


def test_keypoints_of_images(tmp_path: Path) -> None:
    columns = {"i": [picture(1), picture(2)], "p": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]}
    found = read(tmp_path, columns, parquet(["i"], ["p"]), "keypoints")
    np.testing.assert_allclose(np.asarray(found.labels), columns["p"], rtol=1e-6)


ONE_PATH = pa.array([{"bytes": None, "path": "/etc/passwd"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))


@pytest.mark.parametrize(
    ("columns", "data", "task", "message"),
    [
        ({"x": [1.0, None], "y": [1, 2]}, parquet(["x"], ["y"]), "regression", "'x' of data.train has None in row 1"),
        ({"x": [1.0, np.nan], "y": [1, 2]}, parquet(["x"], ["y"]), "regression", "has [nan] in row 1"),
        ({"x": [1.0, 1e60], "y": [1, 2]}, parquet(["x"], ["y"]), "regression", "has [1e+60] in row 1"),
        ({"x": [[1], [1, 2]], "y": [1, 2]}, parquet(["x"], ["y"]), "regression", "has [1, 2] in row 1"),
        (
            {"x": pa.array([[], []], pa.list_(pa.int8())), "y": [1, 2]},
            parquet(["x"], ["y"]),
            "regression",
            "has [] in row 0",
        ),
        ({"x": [[1], [None]], "y": [1, 2]}, parquet(["x"], ["y"]), "regression", "has [None] in row 1"),
        ({"x": ["a", "b"], "y": [1.5, 2]}, parquet(["x"], ["y"]), "text-classification", "has 1.5 in row 0"),
        ({"x": ["a", "b"], "y": [b"c", b"d"]}, parquet(["x"], ["y"]), "text-classification", "values of type binary"),
        ({"x": ["a"], "y": pa.array([2**63], pa.uint64())}, parquet(["x"], ["y"]), "text-classification", "in row 0"),
        ({"x": ["a", "b"], "y": ["c", ""]}, parquet(["x"], ["y"]), "text-classification", "has '' in row 1"),
        ({"x": ["a", "b"], "y": [1, None]}, parquet(["x"], ["y"]), "text-classification", "has None in row 1"),
        ({"x": ["a"], "y": [1]}, parquet(["z"], ["y"]), "text-classification", "no column 'z'; it has 'x', 'y'"),
        ({"x": pa.array([], pa.string()), "y": []}, parquet(["x"], ["y"]), "text-classification", "has no rows"),
        ({"x": ["a"], "n": [1], "y": [1]}, parquet(["x", "n"], ["y"]), "regression", "do not fit together"),
        ({"x": [b"?"], "n": [1], "y": [1]}, parquet(["x"], ["y"]), "image-classification", "'row 0' in data.train"),
        ({"x": ONE_PATH, "y": [1]}, parquet(["x"], ["y"]), "image-classification", "has None in row 0"),
        ({"x": [{"a": 1}], "y": [1]}, parquet(["x"], ["y"]), "regression", "values of type struct"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, columns: dict[str, Any], data: Data, task: TaskName, message: str
) -> None:
    assert message in said(tmp_path, columns, data, task)


HALF = Decimal("0.5")
TYPES: list[pa.Array] = [
    pa.array([0, 1], pa.uint64()),
    pa.array([2**63, 2**64 - 1], pa.uint64()),
    pa.array([0, 1], pa.uint8()),
    pa.array([-1, 1], pa.int64()),
    pa.array([0.0, 1.0], pa.float16()),
    pa.array([0.0, 1.0], pa.float32()),
    pa.array([0.0, np.nan], pa.float64()),
    pa.array([0.0, 1e300], pa.float64()),
    pa.array([Decimal(0), Decimal(1)], pa.decimal128(3, 0)),
    pa.array([Decimal(0), HALF], pa.decimal128(3, 1)),
    pa.array([Decimal(0), Decimal(1)], pa.decimal256(50, 2)),
    pa.array([Decimal(0), Decimal(10) ** 60], pa.decimal256(70, 2)),
    pa.array([True, False]),
    pa.array([None, None]),
    pa.array(["a", None]),
    pa.array(["a", "b"], pa.large_string()),
    pa.array(["a", "b"], pa.string_view()),
    pa.array([b"a", b"b"]),
    pa.array([b"a", b"b"], pa.large_binary()),
    pa.array([b"a", b"b"], pa.binary_view()),
    pa.array([b"a", b"b"], pa.binary(1)),
    pa.array(["a", None]).dictionary_encode(),
    pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None])),
    pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array([2**63, 1], pa.uint64())),
    pa.array([0, 1]).dictionary_encode(),
    pa.array([0, 1], pa.date32()),
    pa.array([0, 86_400_000], pa.date64()),
    pa.array([0, 1], pa.time32("s")),
    pa.array([0, 1], pa.timestamp("us", "UTC")),
    pa.array([0, 1], pa.duration("ns")),
    pa.array([[0, 1], [1, 0]]),
    pa.array([[0, 1], [1, 0]], pa.large_list(pa.float16())),
    pa.array([[0, 1], [1, 0]], pa.list_(pa.float32(), 2)),
    pa.array([[0, 1], None], pa.list_(pa.float32(), 2)),
    pa.array([[0, 1], [1, 0]], pa.list_view(pa.int8())),
    pa.array([[Decimal(0)], [HALF]], pa.list_(pa.decimal128(3, 1))),
    pa.array([[2, 3], [0, 1], [1, 0], [4, 5]])[1:3],
    pa.array([2, 0, 1, 3])[1:3],
    pa.array([[[0]], [[1]]]),
    pa.array([["a"], ["b"]]),
    pa.array([["a"], ["b"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    pa.array([{"a": 0}, {"a": 1}]),
    pa.array([[("a", 0)], []], pa.map_(pa.string(), pa.int8())),
    pa.array([{"bytes": "a"}, {"bytes": "b"}]),
    pa.array([[{"content": 1}], [{"content": 2}]]),
    pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1], pa.int8())),
    pa.ExtensionArray.from_storage(pa.json_(), pa.array(["0", "1"])),
    pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * 2, pa.binary(16))),
    pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 2, 2), np.float32)),
    pa.RunEndEncodedArray.from_arrays([2], pa.array([1])),
    pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([0, 1])]),
]


def name_of(column: Any) -> str:
    return str(getattr(column, "type", column))[:30]


@pytest.mark.parametrize("kind", ["parquet", "hf-dataset"])
@pytest.mark.parametrize("task", ["text-classification", "image-classification", "regression"])
@pytest.mark.parametrize("role", ["x", "y"])
@pytest.mark.parametrize("column", TYPES, ids=name_of)
def test_a_column_of_any_type_is_read_or_refused(
    tmp_path: Path, column: pa.Array, role: str, task: TaskName, kind: str
) -> None:
    other = ["a", "b"] if role == "y" else [1, 0]
    table = pa.table({role: column, "y" if role == "x" else "x": other})
    data = options(kind, input_columns=["x"], label_columns=["y"])
    try:
        path = stored(tmp_path, table, kind)
    except pa.ArrowException:
        pytest.skip("Parquet has no such type")
    try:
        found: Samples | UserError = read_samples(path, data, columns_of(task), PARAM)
    except UserError as error:
        found = error
    if isinstance(found, UserError):
        assert found.code == "invalid_data"
        assert repr(role) in found.message or "'row 0'" in found.message
    else:
        assert len(found.labels) == 2


def stored(folder: Path, table: pa.Table, kind: str) -> Path:
    """The table as a Parquet file, or as a data set."""
    if kind == "parquet":
        pq.write_table(table, folder / "t.parquet")
        return folder / "t.parquet"
    with pa.ipc.new_stream(buffer := io.BytesIO(), table.schema) as stream:
        stream.write_table(table)
    state = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()
    return packed(folder / "t.tar", {"set/state.json": state, "set/data.arrow": buffer.getvalue()})


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([0, 1, 2], pa.uint64()),
        pa.array([0.0, 1.0, 2.0], pa.float16()),
        pa.array([Decimal(0), Decimal(1), Decimal("2.0")], pa.decimal128(3, 1)),
        pa.array([Decimal(0), Decimal(1), Decimal(2)], pa.decimal256(50, 0)),
        pa.array([9, 0, 1, 2])[1:],
        pa.DictionaryArray.from_arrays(pa.array([1, 0, 2]), pa.array([1, 0, 2])),
    ],
    ids=name_of,
)
def test_whole_numbers_of_any_type_are_classes(tmp_path: Path, labels: pa.Array) -> None:
    found = read(tmp_path, {"x": ["a", "b", "c"], "y": labels}, parquet(["x"], ["y"]), "text-classification").labels
    assert np.asarray(found).tolist() == [0, 1, 2]
    assert np.asarray(found).dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        (pa.array([0, 2**63], pa.uint64()), str(2**63)),
        (pa.array([0, 0.5]), "0.5"),
        (pa.array([0, np.inf]), "inf"),
        (pa.array([0, 1e30]), "1e+30"),
        (pa.array([Decimal(0), HALF], pa.decimal128(3, 1)), "Decimal('0.5')"),
    ],
    ids=name_of,
)
def test_what_is_no_number_of_a_class_is_named(tmp_path: Path, labels: pa.Array, value: str) -> None:
    message = said(tmp_path, {"x": ["a", "b"], "y": labels}, parquet(["x"], ["y"]), "text-classification")
    assert message.startswith(f"column 'y' of data.train has {value} in row 1; accepted: a whole number below 2**63")


def test_decimals_are_numbers(tmp_path: Path) -> None:
    columns = {"x": pa.array([Decimal("0.5"), Decimal(2)], pa.decimal128(3, 1)), "y": pa.array([HALF, HALF])}
    found = read(tmp_path, columns, parquet(["x"], ["y"]), "regression")
    assert (array(found).tolist(), np.asarray(found.labels).tolist()) == ([[0.5], [2]], [[0.5], [0.5]])


@pytest.mark.parametrize("name", ["", "a\0", "\ud800", "a" * 1025])
def test_a_name_that_no_class_can_have_is_refused(tmp_path: Path, name: str) -> None:
    features = {"y": {"names": ["a", name], "_type": "ClassLabel"}}
    told = json.dumps({"info": {"features": features}}).encode()
    table = pa.table({"x": ["a", "b"], "y": [0, 1]}).replace_schema_metadata({b"huggingface": told})
    pq.write_table(table, tmp_path / "t.parquet")
    message = refusal(tmp_path / "t.parquet", parquet(["x"], ["y"]), "text-classification").message
    assert "names class 1" in message
    assert message.isascii()


@pytest.mark.parametrize("damage", ["cut", "scramble", "other"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path, {"x": [1.0] * 500, "y": [2.0] * 500})
    content = path.read_bytes()
    middle = bytes(byte ^ 0x5A for byte in content[4:-8])
    path.write_bytes({"cut": content[:-30], "scramble": content[:4] + middle + content[-8:], "other": b"hello"}[damage])
    assert "not a valid Parquet file" in refusal(path, parquet(["x"], ["y"]), "regression").message


def test_columns_above_the_cap_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "most_bytes", lambda path, ratio: 100)
    assert "more than 100 bytes" in said(
        tmp_path, {"x": [1.0] * 50, "y": [1.0] * 50}, parquet(["x"], ["y"]), "regression"
    )


# --- data sets of `datasets` ---


def saved(folder: Path, made: Any, kind: str = "a.tar") -> Path:
    made.save_to_disk(folder / "saved", **({} if isinstance(made, datasets.DatasetDict) else {"num_shards": 2}))
    files = sorted(path for path in (folder / "saved").rglob("*") if path.is_file())
    return packed(folder / kind, {str(path.relative_to(folder)): path.read_bytes() for path in files})


def hf(inputs: list[str], labels: list[str], **more: Any) -> Data:
    return options("hf-dataset", input_columns=inputs, label_columns=labels, **more)


def a_set(count: int = 7) -> datasets.Dataset:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["zebra", "ant"]),
            "score": datasets.Value("float32"),
        }
    )
    images = [Image.new("RGB", (5, 6), (i, i, i)) for i in range(count)]
    rows = {"image": images, "text": [f"t{i}" for i in range(count)]}
    return datasets.Dataset.from_dict(
        {**rows, "label": [i % 2 for i in range(count)], "score": [i / 2 for i in range(count)]}, features
    )


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_saved_set_has_images_and_named_classes(tmp_path: Path, kind: str) -> None:
    data = hf(["image"], ["label"])
    found = read_samples(saved(tmp_path, a_set(), kind), data, columns_of("image-classification"), PARAM)
    assert array(found)[:, 0, 0, 0].tolist() == list(range(7))
    assert np.asarray(found.labels).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert found.class_names == ["zebra", "ant"]


def test_texts_with_a_score(tmp_path: Path) -> None:
    found = read_samples(
        saved(tmp_path, a_set(3).select([2, 0])), hf(["text"], ["score"]), columns_of("regression"), PARAM
    )
    assert found.inputs == TextSamples(["t2", "t0"])
    assert np.asarray(found.labels).tolist() == [[1.0], [0.0]]


def test_splits_are_chosen_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path, datasets.DatasetDict({"train": a_set(4), "test": a_set(3)}))
    data = hf(["text"], ["label"], split="train", eval_split="test")
    assert len(read_samples(path, data, columns_of("text-classification"), "data.train").labels) == 4
    assert len(read_samples(path, data, columns_of("text-classification"), "data.eval").labels) == 3
    error = refusal(path, hf(["text"], ["label"]), "text-classification")
    assert error.param == "data.split"
    assert "its splits are: test, train" in error.message
    missing = hf(["text"], ["label"], split="train", eval_split="dev")
    assert refusal(path, missing, "text-classification", "data.eval").param == "data.eval_split"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x/state.json": b"{}", "x/data.arrow": b""}, "not a valid data set"),
        ({"x/state.json": b'{"_data_files": [{"filename": "a.arrow"}]}'}, "which is missing"),
        ({"x/state.json": b'{"_data_files": [{"filename": "a.arrow"}]}', "x/a.arrow": b"nonsense"}, "not a valid"),
        ({"x/state.json": b'{"_data_files": []}'}, "not a valid data set"),
        ({"x/a.arrow": b""}, "no single split"),
    ],
)
def test_a_set_that_is_not_whole_is_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    path = packed(tmp_path / "a.zip", files)
    assert message in refusal(path, hf(["text"], ["label"]), "text-classification").message


def test_masks_are_read_of_the_file_to_evaluate_on(tmp_path: Path) -> None:
    masks = [encoded(Image.new("L", (5, 6), shade)) for shade in (0, 127, 128, 255)]
    columns = {"image": [picture(10)] * 4, "mask": masks}
    data = parquet(["image"], [], mask_column="mask", eval="g")
    path = write(tmp_path, columns)
    assert read_samples(path, data, columns_of("anomaly-detection"), "data.train").masks is None
    found = read_samples(path, data, columns_of("anomaly-detection"), "data.eval")
    assert found.masks is not None
    assert (found.masks.shape, found.masks.dtype) == ((4, 6, 5), bool)
    assert found.masks.any((1, 2)).tolist() == found.masks.all((1, 2)).tolist() == [False, False, True, True]
    resized = parquet(["image"], [], mask_column="mask", image_size=[3, 4])
    taken = read_samples(path, resized, columns_of("anomaly-detection"), PARAM)
    assert taken.masks is not None
    assert taken.masks.shape == (4, 3, 4)
    wrong = parquet(["image"], [], mask_column="number")
    columns = {**columns, "number": [1, 2, 3, 4]}
    assert "accepted: bytes of images" in said(tmp_path, columns, wrong, "anomaly-detection")
    assert "no column 'mask'" in said(
        tmp_path, {"image": [picture(10)]}, parquet(["image"], [], mask_column="mask"), "anomaly-detection"
    )


def test_images_without_labels_are_read_for_self_supervision(tmp_path: Path) -> None:
    found = read(tmp_path, {"image": [picture(10), picture(20)]}, parquet(["image"], []), "self-supervised")
    assert array(found).shape == (2, 3, 6, 5)
    assert np.asarray(found.labels).tolist() == [UNLABELLED, UNLABELLED]
    assert found.class_names is None
    named = {"image": [picture(10), picture(20)], "kind": ["cat", "dog"]}
    assert read(tmp_path, named, parquet(["image"], ["kind"]), "self-supervised").labels == ["cat", "dog"]
