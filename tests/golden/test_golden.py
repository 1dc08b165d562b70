"""Every vector of this folder holds, and the checker notices what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden import HERE, Case, NothingToCompare, read_cases
from tests.golden.__main__ import main
from tests.golden.comparison import Comparison
from tests.golden.methods import METHODS

NOT_OURS = {
    ("unime", "inbatch_infonce"),
    ("cfcd", "arc_curricular"),
}
"""Cases about something that this package does not compute; and of `ldr` the authors' other losses."""
OTHER_LOSSES = ("cs", "ww", "mae", "nce", "rce", "agce", "aul", "sce", "ce")
CASES = [case for path in sorted(HERE.glob("*.npz")) for case in read_cases(path)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.name}")
def test_equals_the_authors_numbers(case: Case) -> None:
    try:
        compared = list(METHODS[case.method](case))
    except NothingToCompare:
        other = case.method == "ldr" and case.name.partition("_")[0] in OTHER_LOSSES
        assert other or (case.method, case.name) in NOT_OURS
        return
    assert compared
    assert [f"{c.kind} {c.output}: {c.error:.1e}" for c in compared if not c.passes] == []


def test_every_method_that_is_known_has_vectors_here() -> None:
    assert {case.method for case in CASES} == set(METHODS)


def write(path: Path, *, method: str = "kd_hinton", loss: float = 0.0, temperature: float = 2.0) -> None:
    """One case of `kd` with equal logits, whose loss is 0."""
    arrays = {"z": np.eye(3), "loss": np.float64(loss)}
    entry = {name: {"key": name} for name in arrays}
    case = {
        "case": "equal",
        "hyper": {"temperature": temperature},
        "inputs": {"logit_s": entry["z"], "logit_t": entry["z"]},
        "outputs": {"loss": entry["loss"]},
    }
    np.savez(path, meta=json.dumps({"method": method, "cases": [case]}), **arrays)


def test_a_folder_that_holds_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.npz")
    assert main([str(tmp_path)]) == 0
    assert "1 checks, 0 failed; 0 files not known" in capsys.readouterr().out


def test_a_wrong_number_is_named_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.npz", loss=1e-11)
    assert main([str(tmp_path)]) == 1
    assert "FAILED: loss" in capsys.readouterr().out


def test_a_case_that_can_not_be_run_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.npz", temperature=-1.0)
    assert main([str(tmp_path)]) == 1
    assert "FAILED: ValidationError" in capsys.readouterr().out


def test_what_is_not_known_is_listed_and_does_not_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.npz", method="alchemy")
    np.savez(tmp_path / "b.npz", x=np.zeros(2))
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "alchemy" in printed
    assert "b                    of another layout: has neither an array `meta` nor `meta_json`" in printed
    assert "0 checks, 0 failed; 2 files not known" in printed


def test_a_folder_without_vectors_is_refused(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 2


@pytest.mark.parametrize("found", [float("nan"), [1.0, 1.0], 1.0 + 1e-8])
def test_a_comparison_does_not_pass_what_is_undefined_of_another_shape_or_too_far(found: object) -> None:
    assert not Comparison(
        "kd", "loss", torch.tensor(found, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    ).passes


def test_gradients_are_relative_to_their_largest_entry() -> None:
    expected = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = expected + 5e-10
    assert Comparison("kd", "grad", found, expected, is_gradient=True).passes
    assert not Comparison("kd", "loss", found, expected).passes


def test_a_case_without_anything_to_compare_is_skipped_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = {"method": "ntxent", "cases": {"order": {"hp": {}, "arrays": {"labels": ["int64", [2]]}}}}
    np.savez(tmp_path / "a.npz", meta_json=json.dumps(meta), **{"order.labels": np.zeros(2, np.int64)})
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "skipped: no pair of views" in printed
    assert "0 checks, 0 failed; 0 files not known" in printed


def test_rates_of_normalized_gradient_descent_are_those_of_the_file() -> None:
    (case,) = [case for case in CASES if (case.method, case.name) == ("normalized_lr_gd", "random_separable")]
    renamed = {"theta_nlrgd_g0.5": torch.zeros(1, 3, dtype=torch.float64)}
    (first,) = METHODS[case.method](replace(case, outputs=renamed))
    assert first.output == "theta_nlrgd_g0.5, step 0"
