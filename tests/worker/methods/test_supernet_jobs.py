"""Whole jobs that search a super-network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.pooling import Embedding
from app.recipe.students.sub_spaces import SubSpace
from tests import kinds
from tests.kinds import PAIRS, small_job
from tests.worker.methods.supernet_scene import (
    METHOD,
    SMALL,
    SPACE,
    TEACHER,
    TWO,
    Document,
    attended,
    job,
    plain_relation,
    played,
    projections,
    relation,
    searched,
    sliced,
    staged,
)
from tests.worker.tasks import test_texts as texts
from tests.worker.training.builders import (
    finished,
    play,
    require_same_bits,
    require_same_bits_after_death,
)
from worker.methods.supernet_step import SupernetStep
from worker.protocol import CheckpointSaved, Failed, Finished, Log, Metrics, Stopped
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.super_network import SuperNetwork
from worker.students.weights import load_model, read_config


def test_the_report_and_the_files_have_the_whole_search(inputs: dict[str, str], tmp_path: Path) -> None:
    limits = {"max_parameters": 3000}
    losses = [relation()]
    document = job({**TWO, "losses": losses, "method": {**TWO["method"], "search": limits}})
    found, bundle_ = played(tmp_path, inputs, document), tmp_path / "bundle"
    report, result = json.loads((bundle_ / "report.json").read_text()), searched(tmp_path)
    assert [row.row for row in result.rows] == list(range(8 + 2))
    allowed = [row for row in result.rows if row.parameters <= 3000]
    chosen = result.rows[result.chosen]
    assert chosen.loss == min(row.loss for row in allowed) > min(row.loss for row in result.rows)
    assert report["train"]["search"]["chosen"]["row"] == chosen.row
    assert [row["row"] for row in report["train"]["search"]["front"]] == [r.row for r in result.rows if r.pareto]
    assert report["student"]["parameters"] == chosen.parameters
    assert (bundle_ / "search.png").read_bytes().startswith(b"\x89PNG")
    card = (bundle_ / "README.md").read_text()
    assert "search.png" in card
    assert f"| {chosen.row} (chosen)" in card
    reader = AutoModel.from_pretrained(bundle_)
    assert reader.config.num_hidden_layers == chosen.layers
    assert (reader.config.hidden_size, reader.config.intermediate_size) == (chosen.width, chosen.hidden)
    shared, own = load_file(bundle_ / result.spaces[chosen.space].weights), load_file(bundle_ / "model.safetensors")
    name = "encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(own[name], shared[name][: chosen.hidden, : chosen.width])
    assert set(report["learners"]) == {"space-2"}
    names = set().union(*(metrics.values for metrics in found.of(Metrics)))
    assert {"train/loss/largest", "train/loss/drawn", "train/space-2/loss/smallest", "train/space-2/grad_norm"} <= names
    train = report["train"]
    assert train["space-2_flops"] > 0
    assert train["flops"] == sum(train[f"{network}_flops"] for network in ("student", "space-2", "teacher"))


def test_a_row_s_loss_is_that_of_its_network_on_the_held_out_texts(inputs: dict[str, str], tmp_path: Path) -> None:
    played(tmp_path, inputs, job({"losses": [relation()]}, data={**PAIRS, "eval": "pairs"}))
    result, teacher = searched(tmp_path), load_model(Path(inputs["encoder"])).double()
    space = result.spaces[0]
    shared = Model(space.config)
    shared.network.load_state_dict(load_file(tmp_path / "bundle" / space.weights))
    shared.double()
    reader = AutoTokenizer.from_pretrained(inputs["encoder"])
    texts = [text for one, other, _ in kinds.pairs() for text in (one, other)]
    ids = reader(texts, padding="max_length", max_length=8, truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        taught = attended(*sliced(teacher, TEACHER), ids)
        for row in result.rows:
            loss = plain_relation(attended(*sliced(shared, row.sizes), ids), taught, ids != 0, 2)
            assert row.loss == pytest.approx(loss.item(), rel=1e-4, abs=2e-8)


def test_latencies_are_measured_on_the_front_alone(inputs: dict[str, str], tmp_path: Path) -> None:
    for limit in (1e9, 1e-9):
        folder = tmp_path / str(limit)
        method = {**METHOD, "spaces": [SMALL], "search": {"max_latency_ms": limit}}
        losses = [relation(layer={"teacher": projections(3), "student": projections(1)})]
        found = played(folder, inputs, job({"method": method, "losses": losses}))
        result = searched(folder)
        measured = [row for row in result.rows if row.latency_ms is not None]
        assert measured == [row for row in result.rows if row.pareto]
        best = min(measured, key=lambda row: row.loss if limit > 1 else row.latency_ms or 0.0)
        assert result.chosen == best.row
        warned = any("the fastest sub-network takes" in log.message for log in found.of(Log))
        assert warned == (limit < 1)


@pytest.mark.parametrize("recipe", [{}, TWO, {"precision": "bf16", "schedule": {"kind": "cosine"}}])
def test_a_resumed_job_has_the_same_bits(inputs: dict[str, str], tmp_path: Path, recipe: Document) -> None:
    losses = {} if recipe == {} else {"losses": [relation()]}
    require_same_bits(lambda folder: staged(folder, inputs, job({**recipe, **losses})), tmp_path)
    assert searched(tmp_path / "straight") == searched(tmp_path / "halting")
    reports = [json.loads((tmp_path / name / "bundle" / "report.json").read_text()) for name in ("straight", "halting")]
    assert reports[0]["train"]["student_flops"] == reports[1]["train"]["student_flops"]


def test_a_job_that_dies_between_steps_has_the_same_bits(inputs: dict[str, str], tmp_path: Path) -> None:
    document = job({**TWO, "losses": [relation()], "checkpoint": {"every_steps": 2}})
    require_same_bits_after_death(lambda folder: staged(folder, inputs, document), SupernetStep, tmp_path)


def test_a_job_that_is_stopped_in_the_search_searches_again(inputs: dict[str, str], tmp_path: Path) -> None:
    assignment = staged(tmp_path, inputs, job())
    stopped = play(assignment, tmp_path, steps=6 + 3)
    assert stopped.word == Stopped(step=6)
    saved = stopped.of(CheckpointSaved)[-1].path
    assert isinstance(play(assignment.model_copy(update={"resume": saved}), tmp_path).word, Finished)
    assert len(searched(tmp_path).rows) == 8


def test_text_classifiers_are_searched_too(tmp_path: Path) -> None:
    teacher = finished(tmp_path / "teacher", texts.stage(tmp_path / "teacher", {**texts.TEACHER}))
    layer = {"teacher": texts.attention(1), "student": texts.attention(0)}
    losses = [relation(layer=layer), {"kind": "kd"}]
    space = {"layers": [0.5], "width": [0.5, 1.0], "ffn_ratio": [1.0]}
    recipe = {"losses": losses, "method": {"kind": "supernet", "spaces": [space]}, "epochs": 1, "batch_size": 16}
    folder = tmp_path / "student"
    bundle_ = finished(
        folder, texts.stage(folder, {}, teacher, student={"architecture": "shrink", "init": "fresh"}, recipe=recipe)
    )
    assert AutoModelForSequenceClassification.from_pretrained(bundle_).config.num_labels == 2
    assert len(searched(folder).rows) == 2


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"student": {"architecture": "shrink", "layers": 1}}, "student.layers"),
        ({"student": kinds.ENCODER}, "student.architecture"),
        ({"recipe": {"losses": [{"kind": "similarity-matrix"}]}}, "recipe.losses"),
        (
            {"recipe": {"losses": [relation(), {"kind": "hint", "pairs": [{"teacher": "a", "student": "b"}]}]}},
            "recipe.losses[1].kind",
        ),
        ({"recipe": {"losses": [relation(relation_heads=9)]}}, "recipe.losses[0].relation_heads"),
        (
            {"recipe": {"losses": [relation(layer={"teacher": projections(3), "student": projections(2)})]}},
            "recipe.losses[0].layer.student",
        ),
        ({"recipe": {"compile": True}}, "recipe.compile"),
        ({"recipe": {"stages": [{"losses": [relation()], "epochs": 1}]}}, "recipe.stages"),
        (
            {"recipe": {"optimizer": {"kind": "adamw", "groups": [{"match": "*", "lr": 1.0}]}}},
            "recipe.optimizer.groups",
        ),
        ({"evaluation": {"keep": "best"}}, "evaluation.keep"),
        ({"resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}}, "resources.sharding"),
    ],
)
def test_what_cannot_work_is_refused_with_the_field(inputs: dict[str, str], changes: Document, param: str) -> None:
    document = {**job(changes.get("recipe", {})), **{key: value for key, value in changes.items() if key != "recipe"}}
    teacher = read_config(Path(inputs["encoder"]))
    found = find_problems(JobSpec.model_validate(document), InputFacts(teachers={"encoder": teacher}))
    assert param in [problem.param for problem in found], found


def test_a_plain_job_still_needs_a_size_to_shrink_to(inputs: dict[str, str]) -> None:
    document = small_job({"losses": [{"kind": "similarity-matrix"}]}, {"architecture": "shrink"}, "embedding")
    known = InputFacts(teachers={"encoder": read_config(Path(inputs["encoder"]))})
    found = find_problems(JobSpec.model_validate(document), known)
    assert "student" in [problem.param for problem in found]


def test_networks_without_leading_slices_are_refused() -> None:
    network = Transformers(config={"model_type": "electra", "hidden_size": 16})
    other = ModelConfig(
        task="embedding",
        architecture=network,
        input=TextInput(length=8, vocabulary=9),
        targets=16,
        embedding=Embedding(),
    )
    found = list(find_problems(JobSpec.model_validate(job()), InputFacts(teachers={"encoder": other})))
    assert any("leading slices" in problem.message for problem in found)


@pytest.mark.parametrize("field", ["max_parameters", "max_flops"])
def test_limits_below_what_the_smallest_sub_network_surely_costs_are_refused(
    inputs: dict[str, str], field: str
) -> None:
    described = read_config(Path(inputs["encoder"]))
    space = SubSpace(**SPACE).networks(TEACHER)
    exact = network_cost(SuperNetwork(described, space).config_of(space[-1]))
    limit = exact.parameters if field == "max_parameters" else exact.flops

    def refused(most: int) -> list[str | None]:
        document = job({"method": {**METHOD, "search": {field: most}}})
        facts = InputFacts(teachers={"encoder": described})
        return [problem.param for problem in find_problems(JobSpec.model_validate(document), facts)]

    assert refused(limit) == []
    assert refused(limit // 2) == ["recipe.method.search"]


def test_limits_that_nothing_keeps_to_end_the_job_before_training(inputs: dict[str, str], tmp_path: Path) -> None:
    document = job({"method": {**METHOD, "search": {"max_parameters": 10}}})
    word = play(staged(tmp_path, inputs, document), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_job", "recipe.method.search")


def test_a_space_of_more_than_256_sub_networks_is_refused() -> None:
    with pytest.raises(ValueError, match="up to 256"):
        SubSpace(
            layers=[0.1 * n for n in range(1, 9)], width=[0.1 * n for n in range(1, 9)], ffn_ratio=[1, 2, 3, 4, 5.0]
        )
