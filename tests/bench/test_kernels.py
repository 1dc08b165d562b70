"""The comparison of kernels on tiny inputs. Times are not tested."""

from __future__ import annotations

import dataclasses
import json
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import gpu
from bench.kernels import attention, heads, logit_rows, page, plans, retrieval
from bench.kernels import contest as rounds
from bench.kernels.__main__ import main
from bench.kernels.attention import Attended
from bench.kernels.contest import CUDA, PROCESSOR, Contender, Contest, Machine, Outcome, Turn, hold, turn
from bench.kernels.heads import COMPILED, LIGER, NARROW, OURS, PLAIN, SPARSE, STUDENT, TRL, Shape
from bench.kernels.logit_rows import Size
from bench.kernels.retrieval import Listed
from bench.rows import Row

CPU = torch.device("cpu")
SHAPE, SIZE = Shape(12, 8, 96), Size(6, 10)
MACHINE = Machine(copied=1e9, multiplied=1e9)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two rounds, and one thread: more of them wait for each other on a busy machine."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(rounds, "LEAST_ROUNDS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def without_peers(contest: Contest) -> Contest:
    load = {name: make for name, make in contest.load.items() if name not in {LIGER, TRL}}
    return dataclasses.replace(contest, load=load)


def with_contender(contender: Contender, rival: Callable[[], Tensor]) -> Contest:
    def reset() -> None: ...

    load = {"one": lambda: contender, "plain": lambda: Contender(rival)}
    return Contest("title", CPU, torch.float32, load, reset, rival, gradient_bytes=0, least_bytes=1)


def outcome_of(seconds: dict[str, float], missing: dict[str, str] | None = None) -> Outcome:
    contest = with_contender(Contender(lambda: torch.ones(())), lambda: torch.ones(()))
    turns = {name: [Turn(took, took, int(1e6 * took), 1.0)] for name, took in seconds.items()}
    return Outcome(dataclasses.replace(contest, least_bytes=2_000_000), turns, missing or {}, {})


@pytest.mark.parametrize("kind", ["mw", "dexml"])
def test_both_forms_of_the_losses_of_queries_have_the_same_loss(kind: str) -> None:
    outcome = hold(retrieval.contest(kind, Listed(4, 3, 8), CPU, torch.float32), 0.0)
    assert (outcome.wrong, outcome.missing) == ({}, {})
    assert {name: len(turns) for name, turns in outcome.turns.items()} == {OURS: 2, PLAIN: 2}


@pytest.mark.parametrize("causal", [False, True])
def test_both_forms_of_sigmoid_attention_have_the_same_loss(causal: bool) -> None:
    outcome = hold(attention.contest(Attended(2, 2, 9, 4, causal), CPU, torch.float32), 0.0)
    assert (outcome.wrong, outcome.missing) == ({}, {})
    assert set(outcome.turns) == {OURS, PLAIN}


def test_all_forms_of_the_last_layer_have_the_same_loss() -> None:
    outcome = hold(without_peers(heads.contest(SHAPE, CPU, torch.float32)), 0.0)
    assert set(outcome.turns) == {OURS, PLAIN, COMPILED, NARROW}
    assert not outcome.missing
    assert not outcome.wrong
    assert all(math.isfinite(each.loss) for turns in outcome.turns.values() for each in turns)


def test_a_sparse_teacher_contends_with_a_dense_one() -> None:
    shape = Shape(12, 8, 2 * heads.KEPT)
    outcome = hold(heads.sparse_contest(shape, CPU, torch.float32), 0.0)
    assert set(outcome.turns) == {SPARSE, OURS, STUDENT}


def test_a_codebook_has_the_loss_of_the_logits_of_all_tokens() -> None:
    outcome = hold(heads.codebook_contest(Shape(12, 8, 16 * heads.CODE_SHARE), CPU, torch.float32), 0.0)
    assert set(outcome.turns) == {OURS, PLAIN, COMPILED}
    assert not outcome.wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_forms_of_the_row_loss_have_the_same_loss_in_every_round(dtype: torch.dtype) -> None:
    outcome = hold(logit_rows.contest(SIZE, CPU, dtype), 0.0)
    assert set(outcome.turns) == {OURS, PLAIN, COMPILED}
    assert len({each.loss for each in outcome.turns[OURS]}) == 1, "its logits are overwritten, and laid anew"


def test_another_loss_is_reported_and_left_out() -> None:
    outcome = hold(with_contender(Contender(lambda: torch.tensor(2.0)), lambda: torch.tensor(1.0)), 0.0)
    assert outcome.wrong == {"one": "gives 2, not 1"}
    assert set(outcome.turns) == {"plain"}
    assert "left out, as it gives 2, not 1" in page.section(outcome, MACHINE, ())


def test_who_fails_is_missing_with_the_reason_and_the_others_go_on() -> None:
    def fail() -> Tensor:
        raise torch.OutOfMemoryError("no memory left\nand a long report")

    outcome = hold(with_contender(Contender(fail), lambda: torch.tensor(1.0)), 0.0)
    assert outcome.missing == {"one": "OutOfMemoryError: no memory left"}
    assert len(outcome.turns["plain"]) == 2


def test_the_highest_memory_counts_without_the_gradients() -> None:
    megabytes = 1 << 20

    def loss() -> Tensor:
        return torch.ones(16 * megabytes).sum()  # 64 MB that are gone at the end

    def kept_in(place: list[Tensor]) -> Tensor:
        place.append(torch.ones(16 * megabytes))
        return torch.ones(())

    contest = dataclasses.replace(with_contender(Contender(loss), loss), gradient_bytes=64 * megabytes)
    assert 60 * megabytes < turn(Contender(loss), contest).memory < 90 * megabytes
    kept: list[Tensor] = []
    assert turn(Contender(lambda: kept_in(kept), early=True), contest).memory < 90 * megabytes - 60 * megabytes


def test_targets_are_reached_missed_or_not_measured() -> None:
    quick = outcome_of({OURS: 1.0, PLAIN: 10.0, LIGER: 0.5})
    lines = [verdict.line(quick, MACHINE) for verdict in page.HEADS]
    assert [line.rpartition(": ")[2] for line in lines] == ["yes (0.1)", "yes (0.1)", "NO (2)"]
    nothing = outcome_of({OURS: 1.0, PLAIN: 0.0})
    assert page.HEADS[0].line(nothing, MACHINE).endswith("not measured (too little to be seen)")
    alone = outcome_of({OURS: 1.0, PLAIN: 10.0}, {LIGER: "no module"})
    assert page.HEADS[2].line(alone, MACHINE).endswith(f"not measured ({LIGER} is missing)")
    assert page.ROWS_CUDA[0].line(quick, Machine(2e6, 1.0)).endswith("yes (1)")
    assert page.ROWS_CUDA[0].line(quick, Machine(3e6, 1.0)).endswith("NO (0.667)")


def test_a_sparse_teacher_is_charged_with_what_it_adds() -> None:
    outcome = outcome_of({SPARSE: 1.05, OURS: 2.0, STUDENT: 1.0})
    assert page.SPARSES[0].line(outcome, MACHINE).endswith("yes (0.05)")


def test_the_table_has_a_line_for_everyone() -> None:
    text = page.section(outcome_of({OURS: 1.0, PLAIN: 4.0}, {LIGER: "not | here"}), MACHINE, ())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert rows[2].split(" | ")[3:7] == ["0.250", "1.0", "0.250", ""]
    assert f"* {LIGER}: not here (not | here)" in text


def tiny() -> plans.Plan:
    return plans.plan("cpu", torch.float32, [SHAPE], [Shape(6, 4, 128)], [SIZE], (16, 1))


def test_the_inputs_of_a_contest_that_is_over_are_let_go() -> None:
    def makes_weak(make: Callable[[], Contest]) -> Callable[[], Contest]:
        def made() -> Contest:
            contest = make()
            alive.append(weakref.ref(contest))
            return contest

        return made

    alive: list[weakref.ref[Contest]] = []
    plan = tiny()
    entries = [plans.Entry(makes_weak(entry.make), entry.verdicts) for entry in plan.entries]
    for _ in plans.held(plan._replace(entries=entries), MACHINE, 0.0):
        assert alive[-1]() is None
    assert len(alive) == 4


def test_the_gpus_command_leaves_numbers_and_tables(tmp_path: Path) -> None:
    held = gpu.measure(
        tiny(), tmp_path / "out", 0.0, {"device": "none at all"}, lambda: [Row("adamp", 2.0, "ms", 1.0, "AdamW, fused")]
    )
    assert len(held) == 4
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [each["contest"] for each in document["contests"]] == [each.data["contest"] for each in held]
    assert set(document) >= {"commit", "versions", "device", "machine", "system", "date"}
    first = document["contests"][0]["turns"][OURS]
    assert len(first) == 2
    assert set(first[0]) == set(Turn._fields)
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert all(each.section in text for each in held)
    assert "none at all" in text
    assert document["optimizers"][0]["reference"] == 1.0
    assert "| adamp | 2.00 ms | 1.00 ms AdamW, fused | 2.00 |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_cuda_the_gpus_command_refuses_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_plans_hold_the_shapes_that_targets_are_stated_for() -> None:
    processor, cuda = plans.processor(False), plans.cuda(False)
    assert cuda.dtype == torch.bfloat16
    assert len(processor.entries) == 2 + 1 + 1 + 6 + 4
    assert len(cuda.entries) == 5 + 1 + 1 + 6 + 1 + 2 + 3
    meters: dict[str, Any] = {"cpu": PROCESSOR, "cuda": CUDA}
    assert {plan.device.type for plan in (processor, cuda)} == set(meters)


def test_the_page_gets_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "processor", lambda short: tiny())
    target = tmp_path / "page.md"
    target.write_text("before\n<!-- kernels: begin -->\nold\n<!-- kernels: end -->\nafter\n")
    main(["--short", "--seconds", "0", "--threads", "1", "--write", str(target)])
    text = target.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert str(SHAPE) in text
    assert "old" not in text
