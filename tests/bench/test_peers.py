"""The common setup of the compared engines, and the tables; the peers are in a separate environment."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from app.recipe.losses import Jsd, Kd
from bench.peers import page, runs
from bench.peers.absence import MISSING, why
from bench.peers.engines import Clock, Taken, plain, stillhouse
from bench.peers.ground import SHORT, Ground, Objective, lay
from bench.peers.losses import (
    PAIRS,
    Compared,
    Loss,
    Missing,
    Pair,
    Shape,
    Side,
    at_the_last_layer,
    compare,
    mean_of_rows,
)

ROUNDING = 1e-5


@pytest.fixture(scope="module", params=["kd", "mse"])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    objective: Objective = request.param
    return lay(tmp_path_factory.mktemp("ground") / objective, objective, SHORT)


def test_a_bare_loop_on_the_ground_takes_the_steps_of_the_trainer(ground: Ground) -> None:
    ours, bare = stillhouse(ground, True), plain(ground, True)
    assert len(ours.losses) == len(bare.losses) == SHORT.steps
    assert ours.losses == pytest.approx(bare.losses, rel=ROUNDING)
    assert ours.losses[0] != pytest.approx(ours.losses[-1], rel=ROUNDING), "it must have learned to show anything"
    assert ours.weights.keys() == bare.weights.keys()
    for name, weight in ours.weights.items():
        np.testing.assert_allclose(weight, bare.weights[name], atol=ROUNDING, err_msg=name)


def test_every_epoch_of_the_order_has_every_sample_once(ground: Ground) -> None:
    order = ground.order()
    assert len(order) == SHORT.steps * SHORT.batch
    epochs = [order[begin : begin + SHORT.samples] for begin in range(0, len(order), SHORT.samples)]
    assert all(sorted(epoch) == list(range(SHORT.samples)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_all_texts_have_the_same_number_of_tokens(ground: Ground) -> None:
    transformers = pytest.importorskip("transformers")
    samples = ground.samples()
    tokens = transformers.AutoTokenizer.from_pretrained(ground.student)(samples.first, samples.second)["input_ids"]
    assert {len(row) for row in tokens} == {2 * SHORT.words + 3}, "or padding would differ between the engines"


def test_a_loss_is_compared_in_value_and_gradient() -> None:
    def double(student: Side, teacher: Side) -> torch.Tensor:
        return 2.0 * mean_of_rows(Kd(), student, teacher)

    same = Pair("kd", "itself", Kd(), lambda: lambda student, teacher: mean_of_rows(Kd(), student, teacher))
    wrong = Pair("kd", "twice", Kd(), lambda: double)
    found = list(compare([Shape(3, 5)], 2, [same, wrong]))
    assert all(isinstance(row, Compared) and len(row.ours) == len(row.theirs) == 2 for row in found)
    assert [(row.value_gap, row.gradient_gap) for row in found if isinstance(row, Compared)] == [
        (0.0, 0.0),
        (pytest.approx(0.5), pytest.approx(0.5)),
    ]


def test_torch_s_own_divergence_is_ours() -> None:
    [row] = compare([Shape(4, 7)], 1, [pair for pair in PAIRS if pair.peer == "torch's kl_div"])
    assert isinstance(row, Compared)
    assert row.value_gap < ROUNDING
    assert row.gradient_gap < ROUNDING


def test_a_head_is_part_of_what_is_differentiated() -> None:
    def blind_to_the_head(student: Side, teacher: Side) -> torch.Tensor:
        return at_the_last_layer(Jsd(), [student[0], student[1].detach()], teacher) + 0.0 * student[1].sum()

    [row] = compare([Shape(3, 5)], 1, [Pair("jsd", "blind", Jsd(), lambda: blind_to_the_head, with_head=True)])
    assert isinstance(row, Compared)
    assert row.gradient_gap > 1.0


def test_a_missing_peer_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load() -> Loss:
        import no_such_engine  # noqa: F401

        raise AssertionError

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / MISSING).mkdir()
    (tmp_path / MISSING / "no-such-engine").write_text("ERROR: it wants another torch\n")
    [row] = compare([Shape(3, 5)], 1, [Pair("jsd", "nobody", Jsd(), load)])
    assert isinstance(row, Missing)
    assert "it wants another torch" in page.losses_table([row])


def test_an_error_is_reported_by_its_first_line() -> None:
    assert why(RuntimeError("no driver\nand much more")) == "RuntimeError: no driver"


def test_the_clock_leaves_out_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 50.0, 100.0, 101.0, 103.0])
    monkeypatch.setattr("bench.peers.engines.time.perf_counter", lambda: next(times))
    monkeypatch.setattr("bench.peers.engines.time.process_time", lambda: 0.0)
    clock = Clock()
    assert [clock.tick() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert clock.step() == Taken(1.5, 0.0)


def test_ratios_are_taken_round_by_round() -> None:
    assert runs.ratio([1.0, 10.0, 3.0], [2.0, 10.0, 1.0]) == 1.0


def test_weights_under_other_names_are_no_match() -> None:
    ours, theirs = (runs.Ran([], {name: np.zeros(1)}, []) for name in "ab")
    with pytest.raises(ValueError, match="different names"):
        runs.weight_gap(ours, theirs)


def test_the_table_has_a_line_for_every_engine() -> None:
    ours = runs.Ran([1.0, 2.0], {"w": np.zeros(2)}, [Taken(0.002, 0.001)])
    theirs = runs.Ran([1.0, 2.5], {"w": np.array([0.0, 0.25])}, [Taken(0.004, 0.004)])
    run = runs.Run("kd", "short", SHORT, {runs.OURS: ours, "other": theirs, "absent": "it is not installed"})
    lines = page.runs_table([run]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [runs.OURS, "other", "absent"]
    assert lines[3].split(" | ")[2:4] == ["2e-01", "2e-01"]
    assert lines[3].endswith("| 0.50 | 0.25 |")
    assert "it is not installed" in lines[4]
