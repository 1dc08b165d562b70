"""Weight-shared networks whose sub-networks are trained together and searched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from app.recipe.plan import plan_training
from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.pooling import Embedding
from app.recipe.students.searched import SearchFile
from app.recipe.students.sub_spaces import PRESETS, SubNetwork, SubSpace
from tests import kinds
from tests.kinds import BERT, PAIRS, WORDS, WordPiece, small_job
from tests.worker.tasks import test_texts as texts
from tests.worker.training.builders import (
    Played,
    finished,
    play,
    require_same_bits,
    require_same_bits_after_death,
)
from worker.bundle import writer as bundle
from worker.data.batches import Batches, whole_split
from worker.data.formats.columns import TextSamples
from worker.data.tokens import train_tokenizer
from worker.methods.supernet_step import SupernetState, SupernetStep, draw
from worker.protocol import Assignment, CheckpointSaved, Failed, Finished, Log, Metrics, Stopped
from worker.students.hugging_face_folder import write_tokenizer
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.super_network import SuperNetwork
from worker.students.weights import load_model, read_config, save_model
from worker.tasks.embedding import VECTORS
from worker.training import measure
from worker.training.loop import Stage, set_rate
from worker.training.stages import build_stages, fresh_optimizer, open_teacher
from worker.training.state import TrainState, initial_state

Document = dict[str, Any]
SIZES: Document = {
    **{"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
TEACHER = SubNetwork(4, 16, 4, 32)
SPACE: Document = {"layers": [0.5, 1.0], "width": [0.5, 0.75], "ffn_ratio": [1.0, 2.0]}
SMALL: Document = {"layers": [0.25, 0.5], "width": [0.5], "ffn_ratio": [1.0]}
METHOD: Document = {"kind": "supernet", "spaces": [SPACE], "drawn": 1}


def projections(layer: int) -> Document:
    names = (("queries", "query"), ("keys", "key"), ("values", "value"))
    return {key: f"encoder.layer.{layer}.attention.self.{name}" for key, name in names}


def relation(**changes: Any) -> Document:
    layer = {"teacher": projections(3), "student": projections(3)}
    return {"kind": "attention-relation", "relation_heads": 2, "layer": layer, **changes}


def job(recipe: Document | None = None, **more: Any) -> Document:
    losses = [relation(), {"kind": "similarity-matrix", "compare": "mse", "weight": 0.1}]
    base = {"losses": losses, "method": METHOD, "optimizer": {"kind": "adamw", "lr": 1e-2}, **(recipe or {})}
    return small_job(base, {"architecture": "shrink"}, "embedding", **more)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    kinds.write_data(folder)
    write_encoder(folder / "encoder")
    return {path.stem: str(path) for path in folder.iterdir()}


def write_encoder(folder: Path) -> None:
    tokenizer = train_tokenizer(WordPiece(vocabulary=100), TextSamples(WORDS))
    config = ModelConfig(
        task="embedding",
        architecture=Transformers(config={**BERT, **SIZES}),
        input=TextInput(length=16, vocabulary=tokenizer.vocabulary, pad=tokenizer.pad, separator=tokenizer.separator),
        targets=16,
        embedding=Embedding(normalise=True),
    )
    folder.mkdir()
    torch.manual_seed(0)
    save_model(Model(config), folder)
    write_tokenizer(tokenizer, config, folder)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "draw_curves", lambda *_: None)
    monkeypatch.setattr(measure, "RUNS", 1)


def staged(folder: Path, inputs: dict[str, str], document: Document) -> Assignment:
    spec = JobSpec.model_validate(document)
    return Assignment(spec=spec, inputs={name: inputs[name] for name in spec.references.values()})


def played(folder: Path, inputs: dict[str, str], document: Document) -> Played:
    found = play(staged(folder, inputs, document), folder)
    assert isinstance(found.word, Finished), found.word
    return found


def searched(folder: Path) -> SearchFile:
    return SearchFile.model_validate_json((folder / "bundle" / "search.json").read_bytes())


def plain_relation(student: list[Tensor], teacher: list[Tensor], seen: Tensor, heads: int) -> Tensor:
    """The relation objective as the paper has it, written out text by text."""
    total, count = torch.zeros((), dtype=torch.float64), int(seen.sum())
    for one, other in zip(student, teacher, strict=True):
        for row, length in enumerate(seen.sum(1).tolist()):
            for head in range(heads):
                logs = []
                for states in (one, other):
                    width = states.shape[-1] // heads
                    part = states[row, :length, head * width : (head + 1) * width]
                    logs.append((part @ part.T / width**0.5).log_softmax(-1))
                total = total + (logs[1].exp() * (logs[1] - logs[0])).sum() / (heads * count)
    return total


def sliced(whole: Model, sizes: SubNetwork) -> tuple[Any, dict[str, Tensor]]:
    """The library's encoder in these sizes, and its parameters as slices of those of `whole`, by rules of their own."""
    config = whole.network.config.__class__(**{**whole.network.config.to_dict(), **library_sizes(sizes)})  # type: ignore[operator, union-attr]
    encoder = AutoModel.from_config(config, attn_implementation="eager").double().eval()
    given, depth = dict(whole.network.named_parameters()), whole.network.config.num_hidden_layers  # type: ignore[union-attr]
    found = {}
    for name, like in encoder.named_parameters():
        if name.startswith("pooler"):
            continue
        parts = name.split(".")
        if parts[:2] == ["encoder", "layer"]:
            parts[2] = str(int(parts[2]) * depth // sizes.layers)
        tensor = given[".".join(parts)]
        found[name] = tensor[: like.shape[0]] if like.ndim == 1 else tensor[: like.shape[0], : like.shape[1]]
    return encoder, found


def library_sizes(sizes: SubNetwork) -> Document:
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return dict(zip(keys, sizes, strict=True))


def attended(encoder: Any, parameters: dict[str, Tensor], ids: Tensor) -> list[Tensor]:
    """Queries, keys and values (B, S, D) of the last layer of the library's encoder with these parameters."""
    found: dict[str, Tensor] = {}
    attention = encoder.encoder.layer[-1].attention.self
    hooks = [
        getattr(attention, name).register_forward_hook(lambda *args, name=name: found.update({name: args[2]}))
        for name in ("query", "key", "value")
    ]
    ends = (ids == 3).long()
    parts = (ends.cumsum(1) - ends).clamp(max=1) * (ids != 0)
    arguments = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": parts}
    torch.func.functional_call(encoder, parameters, (), arguments)
    for hook in hooks:
        hook.remove()
    return [found[name] for name in ("query", "key", "value")]


@pytest.fixture
def models(inputs: dict[str, str]) -> tuple[Model, Model, SuperNetwork]:
    """A teacher, the shared network of `SPACE` with random weights, and its sub-networks; in float64."""
    teacher = load_model(Path(inputs["encoder"])).double()
    networks = SubSpace(**SPACE).networks(TEACHER)
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 24}
    shape = {"architecture": Transformers(config={**BERT, **SIZES, **sizes}), "targets": 12}
    torch.manual_seed(3)
    student = Model(teacher.config.model_copy(update=shape)).double()
    return teacher, student, SuperNetwork(student.config, networks)


def tokens() -> Tensor:
    ids = torch.randint(5, 40, (4, 8), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((8, 5, 3, 7)):
        ids[row, 0], ids[row, length - 1], ids[row, length:] = 2, 3, 0
    return ids


def test_sub_networks_are_leading_slices_with_evenly_chosen_layers(models: tuple[Model, Model, SuperNetwork]) -> None:
    _, student, space = models
    assert space.kept(SubNetwork(3, 8, 2, 16)) == [0, 1, 2]
    assert space.kept(SubNetwork(2, 8, 2, 16)) == [0, 2]
    for sizes in space.networks:
        encoder, parameters = sliced(student, sizes)
        ids = tokens()
        expected = attended(encoder, parameters, ids)
        taps = JobSpec.model_validate(job()).recipe.losses[0].taps().student
        recording = SuperNetwork(student.config, space.networks, taps)
        recording.call(student, sizes)(ids)
        for found, wanted in zip(recording.take(sizes).values(), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def scene(
    teacher: Model, student: Model, space: SuperNetwork, ids: Tensor, **recipe: Any
) -> tuple[Stage, TrainState, SupernetStep]:
    """A stage of plain gradient descent without dropout on one batch, in float64."""
    descent = {"kind": "sgd", "lr": 0.1, "momentum": 0.0}
    spec = JobSpec.model_validate(job({"losses": [relation()], "optimizer": descent, **recipe}))
    plan = plan_training(spec.recipe, len(ids))
    samples = whole_split({"tokens": ids}, torch.zeros(len(ids), 3, dtype=torch.float64))
    state = initial_state(spec.recipe, student)
    state.method = SupernetState()
    taught = {"teacher": open_teacher(teacher, spec, "teacher")}
    stage = build_stages(VECTORS, spec, plan, Batches(samples, len(ids), 0), state, taught, 0)[0]
    state.optimizer = fresh_optimizer(stage, student)
    set_rate(stage, state)
    taps = spec.recipe.losses[0].taps().student
    return stage, state, SupernetStep(1, [SuperNetwork(student.config, space.networks, taps)], plan)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_adds_the_gradients_of_its_sub_networks(
    models: tuple[Model, Model, SuperNetwork], accumulate: int
) -> None:
    """In float64, against the objective and the slices written out."""
    teacher, student, space = models
    chosen, ids = draw(space.networks, 1, 0, 0, 0), tokens()
    whole = {name: weight.detach().clone().requires_grad_() for name, weight in student.network.named_parameters()}
    copy = Model(student.config).double()
    copy.network.load_state_dict(whole)
    with torch.no_grad():
        taught = attended(*sliced(teacher, TEACHER), ids)
    totals = []
    for sizes in chosen:
        loss = plain_relation(attended(*sliced(copy, sizes), ids), taught, ids != 0, 2)
        loss.backward()
        totals.append(loss.item())
    assert (chosen[0], chosen[-1], len(chosen)) == (space.networks[-1], space.networks[0], 3)
    stage, state, step = scene(teacher, student, space, ids, accumulate=accumulate)
    values = step(stage, state, stage.step_inputs(0))
    assert float(values["loss"]) == pytest.approx(sum(totals), rel=1e-9)
    assert float(values["loss/smallest"]) == pytest.approx(totals[0], rel=1e-9)
    assert float(values["loss/drawn"]) == pytest.approx(totals[1], rel=1e-9)
    assert float(values["loss/largest"]) == pytest.approx(totals[2], rel=1e-9)
    for (name, weight), other in zip(student.network.named_parameters(), copy.network.parameters(), strict=True):
        gradient = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(weight, whole[name] - 0.1 * gradient, rtol=1e-9, atol=1e-12)


def test_draws_depend_on_the_step_alone_and_take_no_sub_network_twice() -> None:
    networks = PRESETS["base"].networks(SubNetwork(12, 768, 12, 3072))
    for step in range(20):
        chosen = draw(networks, 5, 1, step, 0)
        assert chosen == draw(networks, 5, 1, step, 0)
        assert (chosen[0], chosen[-1]) == (networks[-1], networks[0])
        assert len(set(chosen)) == len(chosen) == 7
    assert len({tuple(draw(networks, 2, 1, step, 0)) for step in range(20)}) > 15
    assert len(draw(networks[:3], 5, 1, 0, 0)) == 3
    assert draw(networks[:1], 5, 1, 0, 0) == networks[:1]


def test_presets_are_rounded_to_what_a_teacher_allows() -> None:
    base = PRESETS["tiny"].networks(SubNetwork(12, 768, 24, 3072))
    assert (base[0], base[-1], len(base)) == (SubNetwork(7, 224, 7, 784), SubNetwork(4, 128, 4, 256), 64)
    small = PRESETS["small"].networks(SubNetwork(6, 384, 12, 1536))
    assert {sizes.width for sizes in small} == {128, 160, 192}
    assert all(sizes.width == 32 * sizes.heads and sizes.hidden <= 1536 for sizes in small)


TWO: Document = {"method": {**METHOD, "spaces": [SPACE, SMALL]}, "ema_decay": 0.5, "accumulate": 2}


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
