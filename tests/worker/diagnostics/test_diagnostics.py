"""Diagnostics in a job: split, report, files, card, faults, resumption and several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.recipe import diagnostics as contract
from app.recipe.diagnostics import Calibration, DiagnosticSpec
from tests.worker.training.builders import Played, play, stage
from worker import diagnostics
from worker.data.batches import whole_split
from worker.diagnostics import ANALYSES, Diagnosed, run_diagnostics, split_held_out
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, HeldOutPart, NotComputable
from worker.protocol import CheckpointSaved, Failed, Finished, Log
from worker.students.weights import load_model
from worker.tensors import IGNORED

CPU = torch.device("cpu")
ASKED: dict[str, Any] = {
    "evaluation": {"diagnostics": [{"kind": "calibration", "bins": 3}]},
    "data": {"train": "data", "eval_fraction": 0.4},
}


def report_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bundle" / "report.json").read_text())
    return found


def held_out(samples: int) -> HeldOutPart:
    rows = torch.arange(samples)
    return HeldOutPart(whole_split({"table": rows.unsqueeze(1)}, rows % 2), rows.unsqueeze(1).float())


def diagnosed(folder: Path, *specs: DiagnosticSpec) -> Diagnosed:
    table = torch.eye(2).repeat(10, 1)
    part = HeldOutPart(whole_split({"table": table}, torch.arange(20) % 2))
    return run_diagnostics(specs, lambda samples: samples.inputs["table"], part, 3, CPU, folder)


def test_every_kind_of_the_contract_has_an_analysis() -> None:
    assert set(ANALYSES) == set(contract.DIAGNOSTICS)


def test_the_split_is_the_seeds_and_takes_every_sample_once() -> None:
    (fitted, judged), again, other = (split_held_out(held_out(21), Calibration(), seed) for seed in (1, 1, 2))
    assert fitted is not None
    assert again[0] is not None
    assert other[0] is not None
    index = fitted.samples.index.tolist()
    assert (len(index), len(judged.samples)) == (10, 11)
    assert sorted(index + judged.samples.index.tolist()) == list(range(21))
    assert again[0].samples.index.tolist() == index != other[0].samples.index.tolist()
    for part in (fitted, judged):
        assert part.teacher is not None
        assert part.teacher.squeeze(1).tolist() == part.samples.inputs["table"].squeeze(1).tolist()


def test_report_files_and_card_have_student_and_teacher(tmp_path: Path) -> None:
    word = play(stage(tmp_path, teacher=True, **ASKED), tmp_path).word
    assert isinstance(word, Finished), word
    found = report_in(tmp_path)["diagnostics"]["calibration"]
    assert (found["kind"], found["bins"], found["picture"]) == ("calibration", 3, "calibration.png")
    assert found["samples"] == {"fitted": 10, "judged": 10, "training": 0}
    assert set(found["figures"]) == {"student", "student_scaled", "teacher", "teacher_scaled"}
    assert "calibration.png" in {one.name for one in word.artifacts if one.media_type == "image/png"}
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "### calibration\n\nOn 10 held-out samples; fitted on 10 others.\n" in card
    assert "| | student | student scaled | teacher | teacher scaled |" in card
    assert "![calibration](calibration.png)" in card


def test_a_kind_that_is_requested_twice_is_numbered(tmp_path: Path) -> None:
    found = diagnosed(tmp_path, Calibration(bins=2), Calibration(bins=4))
    assert [found.figures[name]["bins"] for name in ("calibration-1", "calibration-2")] == [2, 4]
    assert found.pictures == ["calibration-1.png", "calibration-2.png"]
    assert all((tmp_path / name).is_file() for name in found.pictures)


def test_figures_in_doubt_are_warned_of(tmp_path: Path) -> None:
    (warning,) = diagnosed(tmp_path, Calibration(bins=2)).warnings
    assert warning["code"] == "diagnostic_in_doubt"
    assert warning["message"].startswith("calibration: the student's temperature")


def test_without_a_request_there_is_none(tmp_path: Path) -> None:
    play(stage(tmp_path), tmp_path)
    assert report_in(tmp_path)["diagnostics"] == {}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotComputable("no sample has two heads"), "no sample has two heads"),
        (MemoryError(), "memory ran out"),
        (ZeroDivisionError("secret"), "it had an internal error, which is in the worker's log"),
    ],
    ids=["samples", "memory", "fault"],
)
def test_a_diagnostic_that_can_not_be_computed_leaves_its_reason_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fails(spec: Calibration) -> Any:
        def analyse(inputs: DiagnosticInputs) -> DiagnosticResult:
            raise error

        return analyse

    monkeypatch.setitem(diagnostics.ANALYSES, Calibration, fails)
    played = play(stage(tmp_path, **ASKED), tmp_path)
    assert isinstance(played.word, Finished), played.word
    report = report_in(tmp_path)
    found = report["diagnostics"]["calibration"]
    assert (found["left_out"], found.get("figures")) == (reason, None)
    message = f"calibration was not computed: {reason}"
    assert {"code": "diagnostic_not_computed", "message": message} in report["warnings"]
    assert message in [one.message for one in played.of(Log) if one.level == "warning"]
    assert f"### calibration\n\nNot computed: {reason}.\n" in (tmp_path / "bundle" / "README.md").read_text()


def test_too_few_samples_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    evaluation = {"diagnostics": [{"kind": "calibration"}]}
    played = play(stage(tmp_path, evaluation=evaluation), tmp_path)
    assert isinstance(played.word, Failed)
    assert (played.word.fault, played.word.param) == ("user", "evaluation.diagnostics[0].bins")
    assert "5 held-out samples are left to measure on" in played.word.message
    assert played.of(CheckpointSaved) == []


def test_weights_and_mode_of_the_student_stay_as_they_are(tmp_path: Path) -> None:
    diagnosed, plain = tmp_path / "diagnosed", tmp_path / "plain"
    play(stage(diagnosed, **ASKED), diagnosed)
    play(stage(plain, data=ASKED["data"]), plain)
    with_it, without = (load_model(folder / "bundle").state_dict() for folder in (diagnosed, plain))
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_a_job_that_was_stopped_and_resumed_has_the_same_figures(tmp_path: Path) -> None:
    def figures(folder: Path, played: Played) -> Any:
        assert isinstance(played.word, Finished), played.word
        return report_in(folder)["diagnostics"]

    straight, halting = tmp_path / "straight", tmp_path / "halting"
    whole = figures(straight, play(stage(straight, teacher=True, **ASKED), straight))
    assignment = stage(halting, teacher=True, **ASKED)
    saved = play(assignment, halting, steps=2).of(CheckpointSaved)[-1].path
    assert figures(halting, play(assignment.model_copy(update={"resume": saved}), halting)) == whole


def texts(samples: int) -> HeldOutPart:
    """Texts of four tokens that have as many words as their number's rest by four; what is read are their targets, and
    the teacher's outputs are the numbers of the texts."""
    numbers = torch.arange(samples)
    targets = numbers.unsqueeze(1).expand(-1, 4).where(torch.arange(4) < numbers.unsqueeze(1) % 4, IGNORED)
    return HeldOutPart(whole_split({"tokens": targets}, targets), targets[targets != IGNORED].unsqueeze(1).float())


def test_rows_of_a_sample_stay_together_and_those_that_are_ignored_have_no_outputs() -> None:
    whole = texts(30)
    fitted, judged = split_held_out(whole, Calibration(), 1)
    assert fitted is not None
    assert (fitted.samples.samples, judged.samples.samples) == (15, 15)
    for part in (fitted, judged):
        assert part.teacher is not None
        assert part.teacher.squeeze(1).tolist() == part.labels.tolist()
        assert part.rows_of_samples.tolist() == [number % 4 for number in part.samples.index.tolist()]
    assert not set(fitted.labels.tolist()) & set(judged.labels.tolist())
    assert sorted(fitted.labels.tolist() + judged.labels.tolist()) == whole.labels.tolist()
