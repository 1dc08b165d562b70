"""One vector of a text, from the states of its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from app.recipe.students.architectures import Transformers
from app.recipe.students.hugging_face import TEXT_MODEL_TYPES
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.pooling import Embedding
from worker.errors import UserError
from worker.students.model import Model
from worker.students.pooling import pool
from worker.students.weights import WEIGHTS, load_model, save_model
from worker.transformers_library import width_of

STATES = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[4.0, 0.0], [0.0, 0.0], [2.0, 3.0]]])
SEEN = torch.tensor([[True, True, False], [True, True, True]])
SIZES = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    **{"embedding_size": 16, "max_position_embeddings": 40, "num_landmarks": 4, "segment_means_seq_len": 4},
}
DISTILBERT = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 40}
PADDED_LIKE_TEXT = ("convbert", "nystromformer")
"""Networks of the library that look at padding, too."""


def described(model_type: str, how: Embedding, width: int = 16, **config: int) -> ModelConfig:
    sizes = DISTILBERT if model_type == "distilbert" else SIZES
    return ModelConfig(
        task="embedding",
        architecture=Transformers(config={"model_type": model_type, **sizes, **config}),
        input=TextInput(length=16, vocabulary=50, pad=1, separator=2),
        targets=width,
        embedding=how,
    )


def test_a_mean_is_over_the_tokens_that_are_no_padding() -> None:
    assert pool(STATES, SEEN, Embedding()).tolist() == [[2.0, 4.0], [2.0, 1.0]]


def test_the_first_token_may_stand_for_all() -> None:
    assert pool(STATES, SEEN, Embedding(pooling="cls")).tolist() == [[1.0, 2.0], [4.0, 0.0]]


@pytest.mark.parametrize("how", ["mean", "cls"])
def test_a_normalised_vector_has_length_one(how: str) -> None:
    plain, unit = (pool(STATES, SEEN, Embedding(pooling=how, normalise=yes)) for yes in (False, True))  # type: ignore[arg-type]
    torch.testing.assert_close(unit, plain / plain.norm(dim=1, keepdim=True))


def test_a_text_without_tokens_has_a_finite_vector() -> None:
    assert pool(STATES, torch.zeros_like(SEEN), Embedding(normalise=True)).tolist() == [[0.0, 0.0]] * 2


def test_half_precision_is_summed_up_in_float32() -> None:
    many = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    found = pool(many, torch.ones(1, 4096, dtype=torch.bool), Embedding())
    assert found.dtype == torch.float32
    assert found.tolist() == [[1.0]]


@pytest.mark.parametrize("model_type", TEXT_MODEL_TYPES)
def test_every_encoder_of_texts_gives_vectors(model_type: str) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(3, 50, (3, 16))
    tokens[0, 8:] = 1
    for how in (Embedding(), Embedding(pooling="cls", normalise=True)):
        model = Model(described(model_type, how)).eval()
        found = model(tokens)
        assert found.shape == (3, 16)
        if model_type not in PADDED_LIKE_TEXT:
            torch.testing.assert_close(model(tokens[:1, :8]), found[:1], rtol=1e-4, atol=1e-5)


def test_a_layer_behind_the_first_token_is_neither_built_nor_missed(tmp_path: Path) -> None:
    """Files of others have one."""
    model = Model(described("bert", Embedding())).eval()
    assert not any(name.startswith("pooler") for name, _ in model.network.named_parameters())
    save_model(model, tmp_path)
    weights = load_file(tmp_path / WEIGHTS) | {"pooler.dense.weight": torch.zeros(16, 16)}
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    tokens = torch.randint(3, 50, (2, 9))
    torch.testing.assert_close(load_model(tmp_path)(tokens), model(tokens), rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "squeezebert"])
def test_an_encoder_is_read_as_it_was_written(tmp_path: Path, model_type: str) -> None:
    model = Model(described(model_type, Embedding(pooling="cls", normalise=True))).eval()
    save_model(model, tmp_path)
    tokens = torch.randint(3, 50, (2, 9))
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(tokens), model(tokens), rtol=0, atol=0)
    library = AutoModel.from_pretrained(tmp_path).eval()
    states = library(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    torch.testing.assert_close(pool(states, tokens != 1, loaded.config.embedding), model(tokens))


def test_a_width_that_the_network_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="its embeddings have 16 dimensions, not 8"):
        Model(described("bert", Embedding(), width=8))


def test_the_width_follows_from_the_configuration() -> None:
    assert width_of(Transformers(config={"model_type": "distilbert", "dim": 24})) == 24
    assert width_of(Transformers(config={"model_type": "electra"})) == 256
