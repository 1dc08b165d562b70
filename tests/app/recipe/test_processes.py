"""Settings that a job on several processes refuses, and why."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES
from tests.kinds import KINDS, couples, job_of

TOGETHER = {"processes": 2, "queue": "cpu"}
COUPLING = {term.model_fields["kind"].default for term in LOSSES if couples(term) and not term.gathers}


def refused(document: dict[str, Any]) -> dict[str, str]:
    return {problem.param: problem.message for problem in find_problems(JobSpec.model_validate(document))}


def job(recipe: dict[str, Any] | None = None, **resources: Any) -> dict[str, Any]:
    return {
        "data": {"train": "file_a"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}], **(recipe or {})},
        "resources": {**TOGETHER, **resources},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_losses_that_compare_samples_are_refused_and_all_others_are_not(kind: str) -> None:
    found = refused(job_of(kind) | {"resources": TOGETHER})
    assert set(found) == ({"resources.processes"} if kind in COUPLING else set())
    assert all(kind in message for message in found.values())


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_language_models_are_trained_by_several_processes(sharding: str) -> None:
    config = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}
    data = {"format": "jsonl", "train": "file_a", "input_columns": ["text"]}
    student = {"architecture": "transformers", "config": config}
    assert refused(job(sharding=sharding) | {"task": "causal-lm", "data": data, "student": student}) == {}


def test_the_queue_must_be_set() -> None:
    assert set(refused(job(queue="any"))) == {"resources.queue"}
    assert refused(job(queue="gpu")) == refused(job(queue="cpu")) == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_machines_multiply_them(processes: int) -> None:
    assert refused(job({"batch_size": 2 * processes}, processes=processes, nodes=2)) == {}
    assert set(refused(job({"batch_size": 2 * processes - 1}, processes=processes, nodes=2))) == {"resources.processes"}
    assert set(refused(job(processes=processes, nodes=2, queue="any"))) == {"resources.queue"}


def test_machines_keep_no_answers_of_teachers() -> None:
    document = job_of("kd") | {"resources": {**TOGETHER, "nodes": 2}}
    assert set(refused(document)) == {"teacher_cache.store"}
    assert refused(document | {"teacher_cache": {"store": "off"}}) == {}


def test_there_are_no_more_processes_than_samples_in_a_batch() -> None:
    assert refused(job({"batch_size": 2})) == {}
    assert set(refused(job({"batch_size": 1}))) == {"resources.processes"}


def test_a_compiled_step_is_for_a_single_process() -> None:
    assert set(refused(job({"compile": True}))) == {"recipe.compile"}
    assert refused(job({"compile": True}, processes=1)) == {}


def test_an_optimizer_that_needs_outputs_is_for_a_single_process() -> None:
    optimizer = {"optimizer": {"kind": "normalized-gd", "lr": 0.1}}
    assert set(refused(job(optimizer))) == {"recipe.optimizer.kind"}
    staged = {"stages": [{"losses": [{"kind": "cross-entropy"}], "epochs": 1, **optimizer}]}
    assert set(refused(job(staged))) == {"recipe.stages[0].optimizer.kind"}
    assert refused(job(optimizer, processes=1)) == {}


@pytest.mark.parametrize("kind", ["adamp", "sgdp", "sinkgd", "swan"])
def test_weights_are_divided_whatever_the_optimizer(kind: str) -> None:
    assert refused(job({"optimizer": {"kind": kind, "lr": 0.1}}, sharding="fsdp")) == {}


def test_what_needs_another_layout_is_refused_where_weights_are_divided() -> None:
    changes = {"channels_last": True}
    assert set(refused(job(changes, sharding="fsdp"))) == {"recipe.channels_last"}
    assert refused(job(changes)) == {}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - COUPLING))
def test_losses_on_features_are_refused_with_sharded_weights(kind: str) -> None:
    document = job_of(kind) | {"teacher_cache": {"store": "off"}, "resources": {**TOGETHER, "sharding": "fsdp"}}
    spec = JobSpec.model_validate(document)
    inside = [
        f"{path}[{index}].kind"
        for path, terms in spec.objectives.items()
        for index, term in enumerate(terms)
        if term.taps().student or term.taps().teacher or term.kind in ("kd-sim", "l2-svm")
    ]
    assert set(refused(document)) == set(inside)


def test_divided_teachers_keep_no_answers() -> None:
    document = job_of("kd") | {"resources": {**TOGETHER, "sharding": "fsdp"}, "evaluation": {"keep": "best"}}
    assert set(refused(document)) == {"teacher_cache.store"}


def test_weights_of_8_bits_are_not_divided() -> None:
    document = job_of("kd") | {"resources": {**TOGETHER, "sharding": "fsdp"}, "teacher_cache": {"store": "off"}}
    for precision, found in (("fp8", {"teacher.precision"}), ("bf16", set())):
        assert set(refused(document | {"teacher": {"model": "cnn", "precision": precision}})) == found


def test_a_single_process_divides_nothing() -> None:
    assert set(refused(job(processes=1, sharding="fsdp"))) == {"resources.sharding"}
