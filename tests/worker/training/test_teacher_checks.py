"""Teachers and their data meet by the names of the classes, and are measured before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from app.recipe.job import JobSpec
from tests.worker.training.builders import Played, play
from worker.metrics.permutation import moved_classes, moved_places
from worker.protocol import Assignment, CachePlace, Failed, Finished, Log, Metrics, PhaseBegan, Stopped
from worker.tasks import samples as sample_tasks
from worker.tasks.samples import SampleEvaluator

Document = dict[str, Any]
WORDS = ["zero", "one", "two", "three", "four"]
COLUMNS, ROWS, HELD = 12, 400, 120
TABLE = {"format": "parquet", "input_columns": ["x"], "label_columns": ["y"]}


class Files(NamedTuple):
    """Paths of inputs, by the names that jobs give them."""

    paths: dict[str, str]


def write_rows(folder: Path, name: str, names: list[str] | None, count: int, seed: int) -> None:
    """Rows of numbers around a centre for each of five classes, labelled with its number, or with one of `names`."""
    centres = np.random.default_rng(0).normal(0, 1.0, (len(WORDS), COLUMNS))
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % len(WORDS)
    rows = centres[labels] + draw.normal(0, 0.4, (count, COLUMNS))
    column = labels.tolist() if names is None else [names[label] for label in labels]
    table = pa.table({"x": pa.array(rows.tolist(), pa.list_(pa.float32())), "y": column})
    pq.write_table(table, folder / name)


def job(data: Document, teacher: Document | list[Document] | None = None, **more: Any) -> Document:
    teacher_fields = {} if teacher is None else {"teachers" if isinstance(teacher, list) else "teacher": teacher}
    return {
        "data": {**TABLE, **data},
        "student": {"architecture": "mlp", "hidden": [16]},
        "recipe": {
            "losses": [{"kind": "cross-entropy"}] if teacher is None else [{"kind": "kd"}],
            "optimizer": {"kind": "adamw", "lr": 1e-2},
            **{"epochs": 8, "batch_size": 32, **more.pop("recipe", {})},
        },
        "export": ["safetensors"],
        "seed": 1,
        **teacher_fields,
        **more,
    }


def run(files: Files, folder: Path, document: Document, **more: Any) -> Played:
    folder.mkdir(parents=True)
    spec = JobSpec.model_validate(document)
    inputs = {name: files.paths[name] for name in spec.references.values()}
    return play(Assignment(spec=spec, inputs=inputs, **more), folder)


def report(folder: Path) -> Document:
    found: Document = json.loads((folder / "bundle" / "report.json").read_text())
    return found


def warnings(played: Played) -> list[str]:
    return [log.message for log in played.of(Log) if log.level == "warning"]


def warnings_in_report(folder: Path) -> list[str]:
    """Warnings in a report."""
    return [warned["message"] for warned in report(folder)["warnings"]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Data with names, with numbers, and with one other name; a teacher of each."""
    folder = tmp_path_factory.mktemp("files")
    other = ["nought", *WORDS[1:]]
    kinds: dict[str, list[str] | None] = {"words": WORDS, "numbers": None, "other": other}
    for kind, names in kinds.items():
        write_rows(folder, f"{kind}-train", names, ROWS, seed=1)
        write_rows(folder, f"{kind}-eval", names, HELD, seed=2)
    found = Files({path.name: str(path) for path in folder.iterdir()})
    for kind in kinds:
        played = run(found, folder / kind, job({"train": f"{kind}-train", "eval": f"{kind}-eval"}))
        assert isinstance(played.word, Finished), played.word
        assert report(folder / kind)["student"]["accuracy"] > 0.95
        assert warnings(played) == report(folder / kind)["warnings"] == []
        found.paths[f"{kind}-teacher"] = str(folder / kind / "bundle")
    return found


def data_of(kind: str, **more: Any) -> Document:
    return {"train": f"{kind}-train", "eval": f"{kind}-eval", **more}


# ---- the same classes


@pytest.mark.parametrize(
    ("teacher", "data"),
    [
        ({"model": "words-teacher"}, data_of("words")),
        ({"model": "numbers-teacher"}, data_of("numbers")),
        ({"model": "words-teacher"}, data_of("numbers", class_order=WORDS)),
        ({"model": "numbers-teacher"}, data_of("words", class_order=WORDS)),
        ({"model": "numbers-teacher", "class_order": WORDS}, data_of("words")),
        ({"model": "other-teacher", "class_order": sorted(WORDS, key=["four", "zero", "one", "three", "two"].index)},
         data_of("words")),
    ],
    ids=["names", "numbers", "named data", "named teacher by the data", "named teacher", "renamed teacher"],
)  # fmt: skip
def test_a_teacher_with_other_classes_is_aligned(
    files: Files, tmp_path: Path, teacher: Document, data: Document
) -> None:
    played = run(files, tmp_path / "job", job(data, teacher))
    assert isinstance(played.word, Finished), played.word
    found = report(tmp_path / "job")
    assert found["teacher"]["accuracy"] > 0.95
    assert found["student"]["accuracy"] > 0.9
    assert found["student"]["agreement"] > 0.9
    assert found["warnings"] == []


@pytest.mark.parametrize(
    ("teacher", "data", "fragments"),
    [
        ("words-teacher", "numbers", ["has names", "the numbers 0 to 4", "'four', 'one', 'three', 'two', 'zero'"]),
        ("numbers-teacher", "words", ["has numbers", "the numbers 0 to 4", "'four', 'one', 'three', 'two', 'zero'"]),
        ("other-teacher", "words", ["only data.train has 'zero'", "only teacher.model has 'nought'"]),
    ],
)
def test_classes_that_can_not_be_matched_are_refused_before_training(
    files: Files, tmp_path: Path, teacher: str, data: str, fragments: list[str]
) -> None:
    played = run(files, tmp_path / "job", job(data_of(data), {"model": teacher}))
    assert isinstance(played.word, Failed)
    assert (played.word.fault, played.word.code, played.word.param) == ("user", "invalid_teacher", "teacher.model")
    for part in (*fragments, "data.class_order", "teacher.class_order"):
        assert part in played.word.message
    assert played.of(PhaseBegan) == []


def test_every_teacher_is_aligned_also_with_cached_outputs(files: Files, tmp_path: Path) -> None:
    """The second one has its classes in another order, and its cached outputs have that of an earlier job."""
    place = CachePlace(folder=str(tmp_path / "cache"))
    alone = run(files, tmp_path / "alone", job(data_of("words"), {"model": "other-teacher", "class_order": [
        "four", "zero", "one", "three", "two"]}), teacher_cache=place)  # fmt: skip
    assert isinstance(alone.word, Finished), alone.word
    chosen = ["two", "zero", "one", "three", "four"]
    both = [{"name": "a", "model": "words-teacher"}, {"name": "b", "model": "numbers-teacher", "class_order": WORDS}]
    for name in ("first", "again"):
        played = run(files, tmp_path / name, job(data_of("words", class_order=chosen), both), teacher_cache=place)
        assert isinstance(played.word, Finished), played.word
        found = report(tmp_path / name)
        assert [row["name"] for row in found["per_class"]] == chosen
        assert min(found["teachers"][teacher]["accuracy"] for teacher in "ab") > 0.95
        assert found["student"]["accuracy"] > 0.9
    kept = report(tmp_path / "again")["train"]["teacher_cache"]
    assert all(kept[teacher]["shared"] and not kept[teacher]["misses"] for teacher in "ab")


def test_cached_outputs_of_one_order_are_not_used_for_another(files: Files, tmp_path: Path) -> None:
    place = CachePlace(folder=str(tmp_path / "cache"))
    orders = {"there": WORDS, "back": WORDS[::-1]}
    for name, order in orders.items():
        document = job(data_of("words", class_order=order), {"model": "words-teacher"})
        assert isinstance(run(files, tmp_path / name, document, teacher_cache=place).word, Finished)
        assert report(tmp_path / name)["student"]["accuracy"] > 0.9
    keys = {name: report(tmp_path / name)["train"]["teacher_cache"]["teacher"]["key"] for name in orders}
    assert len(set(keys.values())) == 2


def test_a_student_that_starts_from_weights_keeps_its_classes(files: Files, tmp_path: Path) -> None:
    """Also those of the last layer, whose rows are reordered: it begins fully trained."""
    start = {"architecture": "pretrained", "model": "words-teacher"}
    document = job(data_of("words", class_order=WORDS), {"model": "words-teacher"}, student=start)
    document["recipe"] |= {"optimizer": {"kind": "sgd", "lr": 1e-9}, "epochs": 1}
    played = run(files, tmp_path / "job", document)
    assert isinstance(played.word, Finished), played.word
    assert report(tmp_path / "job")["student"]["agreement"] == 1.0
    assert report(tmp_path / "job")["student"]["accuracy"] > 0.95


def test_a_student_from_weights_of_other_classes_begins_its_last_layer_anew(files: Files, tmp_path: Path) -> None:
    start = {"architecture": "pretrained", "model": "other-teacher"}
    played = run(files, tmp_path / "job", job(data_of("words"), student=start))
    assert isinstance(played.word, Finished), played.word
    (text,) = warnings(played)
    assert "last layer is initialised" in text
    assert "'nought'" in text
    assert report(tmp_path / "job")["student"]["accuracy"] > 0.9


# ---- how good a teacher is


def test_a_teacher_with_its_classes_mixed_up_is_named_with_the_order(files: Files, tmp_path: Path) -> None:
    mixed = {"model": "numbers-teacher", "class_order": ["one", "two", "three", "four", "zero"]}
    played = run(files, tmp_path / "job", job(data_of("words"), mixed))
    assert isinstance(played.word, Finished), played.word
    text = " ".join(warnings(played))
    assert "teacher 'teacher' is hardly better than none: accuracy 0 on 120 held-out samples" in text
    assert "is far from its own report" in text
    assert "seems to have its classes in another order" in text
    assert "'zero' is predicted as 'one'" in text
    assert "accuracy 0 as it is, 1 then" in text
    assert warnings_in_report(tmp_path / "job") == warnings(played)
    codes = [warned["code"] for warned in report(tmp_path / "job")["warnings"]]
    assert codes == ["teacher_near_chance", "teacher_below_report", "teacher_permuted"]
    card = (tmp_path / "job" / "bundle" / "README.md").read_text()
    assert "## Warnings" in card
    assert "seems to have its classes in another order" in card


@pytest.mark.parametrize(
    ("required", "ends"),
    [({"accuracy": 0.9}, None), ({"accuracy": 1.01}, "accuracy"), ({"nll": 0.9}, None), ({"nll": 1e-9}, "nll")],
)
def test_a_teacher_can_be_required_to_be_good(
    files: Files, tmp_path: Path, required: dict[str, float], ends: str | None
) -> None:
    document = job(data_of("words"), {"model": "words-teacher"}, evaluation={"require_teacher": required})
    word = run(files, tmp_path / "job", document).word
    if ends is None:
        assert isinstance(word, Finished), word
        return
    assert isinstance(word, Failed)
    assert (word.fault, word.code) == ("user", "weak_teacher")
    assert word.param == f"evaluation.require_teacher.{ends}"
    assert f"teacher 'teacher' has {ends}" in word.message
    assert "on 120 held-out samples" in word.message


def test_a_part_of_many_samples_is_enough_and_the_same_each_time(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_tasks, "CHECKED", 40)
    mixed = {"model": "numbers-teacher", "class_order": ["one", "two", "three", "four", "zero"]}
    first, again = (run(files, tmp_path / name, job(data_of("words"), mixed)) for name in "ab")
    assert warnings(first) == warnings(again)
    assert "on 40 held-out samples" in warnings(first)[0]
    required = job(data_of("words"), mixed, evaluation={"require_teacher": {"accuracy": 0.5}})
    word = run(files, tmp_path / "c", required).word
    assert isinstance(word, Failed)
    assert "on 120 held-out samples" in word.message


def test_a_resumed_job_is_warned_again_and_ends_the_same(files: Files, tmp_path: Path) -> None:
    mixed = job(data_of("words"), {"model": "numbers-teacher", "class_order": [*WORDS[1:], WORDS[0]]})
    spec = JobSpec.model_validate(mixed)
    inputs = {name: files.paths[name] for name in spec.references.values()}
    folder = tmp_path / "job"
    folder.mkdir()
    stopped = play(Assignment(spec=spec, inputs=inputs), folder, steps=3)
    assert isinstance(stopped.word, Stopped)
    resumed = play(Assignment(spec=spec, inputs=inputs, resume="checkpoints/step-3"), folder)
    assert isinstance(resumed.word, Finished), resumed.word
    assert warnings(stopped) == warnings(resumed) == warnings_in_report(folder)


def test_outputs_for_all_samples_are_not_computed_twice(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is evaluated against the outputs of the check."""
    monkeypatch.setattr(SampleEvaluator, "_outputs_of_teacher", lambda evaluator, name: evaluator._computed[name])
    played = run(files, tmp_path / "job", job(data_of("words"), {"model": "words-teacher"}))
    assert isinstance(played.word, Finished), played.word
    assert any("eval/agreement" in metrics.values for metrics in played.of(Metrics))


def test_numbers_are_held_against_their_mean_and_their_order(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(0, 1, (300, 6))
    answers = np.stack([rows[:, 0] * 2 + 1, rows[:, 1] - rows[:, 2], rows[:, 3]], 1)
    for name, order in (("sound", [0, 1, 2]), ("swapped", [1, 0, 2])):
        np.savez(tmp_path / f"{name}.npz", x=rows, y=answers[:, order])
    files = Files({path.stem: str(path) for path in tmp_path.iterdir()})
    numbers: Document = {"task": "regression", "student": {"architecture": "mlp", "hidden": [32]}, "seed": 1}
    numbers |= {"export": ["safetensors"]}
    adam = {"optimizer": {"kind": "adamw", "lr": 1e-2}, "batch_size": 32}
    labels = {"losses": [{"kind": "mse"}], "epochs": 30, **adam}
    assert isinstance(
        run(files, tmp_path / "t", {**numbers, "data": {"train": "sound"}, "recipe": labels}).word, Finished
    )
    files.paths["teacher"] = str(tmp_path / "t" / "bundle")
    by_data: dict[str, list[str]] = {}
    for data in ("sound", "swapped"):
        recipe = {"losses": [{"kind": "mse", "target": "teacher"}], "epochs": 1, **adam}
        document = {**numbers, "data": {"train": data}, "teacher": {"model": "teacher"}, "recipe": recipe}
        played = run(files, tmp_path / data, document)
        assert isinstance(played.word, Finished), played.word
        by_data[data] = warnings(played)
    assert by_data["sound"] == []
    assert any("0 is predicted as 1, 1 is predicted as 0" in each for each in by_data["swapped"])
    assert any("far from its own report" in each for each in by_data["swapped"])


# ---- orders


def test_an_order_is_found_and_chance_is_none() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 6
    order = torch.tensor([2, 0, 1, 3, 4, 5])
    noisy = torch.where(torch.rand(300, generator=draw) < 0.3, torch.randint(6, (300,), generator=draw), order[labels])
    assert moved_classes(noisy, labels) == {0: 2, 1: 0, 2: 1}
    assert moved_classes(labels, labels) == {}
    assert moved_classes(torch.zeros(300, dtype=torch.int64), labels) == {}
    for seed in range(50):
        draw.manual_seed(seed)
        assert moved_classes(torch.randint(6, (300,), generator=draw), labels) == {}
        assert moved_classes(torch.randint(2, (20,), generator=draw), torch.arange(20) % 2) == {}
    swapped = 1 - labels % 2
    assert moved_classes(swapped, labels % 2) == {0: 1, 1: 0}


def test_an_order_of_points_is_found() -> None:
    draw = torch.Generator().manual_seed(0)
    points = torch.rand(50, 4, 2, generator=draw)
    given = points[:, [1, 0, 2, 3]] + 0.02 * torch.randn(50, 4, 2, generator=draw)
    assert moved_places(given.flatten(1), points.flatten(1), 2) == {0: 1, 1: 0}
    assert moved_places(points.flatten(1), points.flatten(1), 2) == {}
    assert moved_places(torch.rand(50, 8, generator=draw), points.flatten(1), 2) == {}
