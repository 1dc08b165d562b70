"""Decoders of the Transformers library: what they say at every token, before and behind their last layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.recipe.hugging_face import DECODER_MODEL_TYPES
from app.recipe.shrink import ENCODERS, Unshrinkable, kept_layers, shrunk
from app.recipe.students import Shrink, Transformers
from tests.worker.students import builders
from worker.students.last_states import LastStates
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.shrink import take_over
from worker.students.weights import load_model, save_model

EVERY = pytest.mark.parametrize("model_type", builders.DECODERS)
SHRINKABLE = sorted(set(builders.DECODERS) & set(ENCODERS))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, builders.VOCABULARY, (rows, builders.LENGTH), generator=torch.Generator().manual_seed(1))


def states(model: Model, ids: torch.Tensor) -> LastStates:
    said = model.look(ids)
    assert isinstance(said, LastStates)
    return said


def test_every_type_of_the_contract_is_tested() -> None:
    assert set(builders.DECODERS) == set(DECODER_MODEL_TYPES)


@EVERY
def test_the_last_layer_makes_the_logits_of_the_last_states(model_type: str) -> None:
    """What is scaled or capped behind that layer would not be learned as it is used."""
    model, ids = builders.decoder(model_type), tokens()
    rows = torch.arange(ids.numel())
    torch.testing.assert_close(states(model, ids).logits(rows), model(ids).flatten(0, 1))


@EVERY
def test_a_token_sees_none_behind_it(model_type: str) -> None:
    model, ids = builders.decoder(model_type), tokens()
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % builders.VOCABULARY
    ours, theirs = model(ids), model(changed)
    torch.testing.assert_close(ours[:, :6], theirs[:, :6])
    assert not torch.allclose(ours[:, 6:], theirs[:, 6:])


@EVERY
def test_all_of_it_learns_through_the_last_states(model_type: str) -> None:
    model = builders.decoder(model_type).train()
    said = states(model, tokens())
    said.logits(torch.arange(24)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@EVERY
def test_its_cost_is_counted_without_building_it(model_type: str) -> None:
    model = builders.decoder(model_type)
    before = torch.get_rng_state()
    cost = network_cost(model.config)
    assert torch.equal(torch.get_rng_state(), before)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.flops > 0


@EVERY
def test_the_library_opens_what_is_saved(model_type: str, tmp_path: Path) -> None:
    model, ids = builders.decoder(model_type), tokens()
    save_model(model, tmp_path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(input_ids=ids).logits, model(ids))
    torch.testing.assert_close(load_model(tmp_path)(ids), model(ids))
    assert theirs.generation_config.eos_token_id == 2
    assert theirs.get_input_embeddings().padding_idx is None


@pytest.mark.parametrize("model_type", SHRINKABLE)
@pytest.mark.parametrize("asked", [{"layers": [1]}, {"layers": 1, "width": 8, "hidden": 12}], ids=["layers", "all"])
def test_a_smaller_copy_runs_with_leading_parts_of_the_weights(model_type: str, asked: dict[str, Any]) -> None:
    teacher = builders.decoder(model_type)
    wanted = Shrink.model_validate(asked)
    student = Model(teacher.config.model_copy(update={"architecture": shrunk(wanted, teacher.config.architecture)}))
    take_over(student, teacher, kept_layers(wanted, 2))
    ours, theirs = student.network.get_input_embeddings(), teacher.network.get_input_embeddings()  # type: ignore[operator]
    torch.testing.assert_close(ours.weight, theirs.weight[:, : ours.weight.shape[1]])
    assert student(tokens()).isfinite().all()
    same = "width" not in asked
    norms = [name for name, _ in student.named_parameters() if "norm" in name or "ln_" in name]
    assert norms
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    if same and "0" in norms[0]:
        mine = dict(student.named_parameters())[norms[0]]
        torch.testing.assert_close(mine, dict(teacher.named_parameters())[norms[0].replace(".0.", ".1.")])


def test_a_copy_of_all_layers_answers_as_its_teacher() -> None:
    teacher = builders.decoder("llama")
    wanted = Shrink(layers=2)
    student = Model(teacher.config.model_copy(update={"architecture": shrunk(wanted, teacher.config.architecture)}))
    take_over(student, teacher, kept_layers(wanted, 2))
    torch.testing.assert_close(student.eval()(tokens()), teacher(tokens()))


def test_heads_that_share_their_keys_stay_together() -> None:
    sizes = builders.DECODERS["llama"] | {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}
    teacher = Transformers(config={"model_type": "llama", **sizes})
    half = shrunk(Shrink(width=16), teacher)
    assert isinstance(half, Transformers)
    assert (half.config["num_attention_heads"], half.config["num_key_value_heads"]) == (4, 2)
    with pytest.raises(Unshrinkable, match="share"):
        shrunk(Shrink(width=12), teacher)
