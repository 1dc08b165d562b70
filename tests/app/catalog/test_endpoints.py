"""The catalogue says what the contract says."""

from __future__ import annotations

from pydantic import TypeAdapter

from app.catalog.endpoints import GROUPS
from app.recipe.data.augmentation import Augment
from app.recipe.data.sources import AnyData
from app.recipe.data.tokenizers import Tokenizer
from app.recipe.diagnostics import Diagnostic
from app.recipe.losses import Loss
from app.recipe.methods import Method
from app.recipe.optimizers import Optimizer, Schedule
from app.recipe.students.architectures import Student
from app.recipe.students.heads import Head
from app.recipe.students.layers import Attention, MlpActivation, Norm
from app.recipe.students.quantisation import Quantisation
from app.recipe.teachers.cache import TeacherCache
from tests.app.conftest import Api

UNIONS = {
    "losses": Loss,
    "optimizers": Optimizer,
    "schedules": Schedule,
    "students": Student,
    "norms": Norm,
    "activations": MlpActivation,
    "attentions": Attention,
    "heads": Head,
    "quantisations": Quantisation,
    "augmentations": Augment,
    "tokenizers": Tokenizer,
    "formats": AnyData,
    "teacher-caches": TeacherCache,
    "diagnostics": Diagnostic,
    "methods": Method,
}


def kinds(union: object) -> set[str]:
    """Members of a tagged union of the contract."""
    return set(TypeAdapter(union).json_schema()["discriminator"]["mapping"])


async def test_every_option_of_the_contract_is_listed_and_nothing_else(api: Api) -> None:
    listed = (await api.client.get("/v1/catalog")).json()["data"]
    assert set(GROUPS) == set(UNIONS)
    for group, union in UNIONS.items():
        assert {option["kind"] for option in listed if option["group"] == group} == kinds(union)
        alone = (await api.client.get(f"/v1/catalog/{group}")).json()["data"]
        assert alone == [option for option in listed if option["group"] == group]


async def test_an_option_is_described_with_its_source_schema_and_defaults(api: Api) -> None:
    losses = {option["kind"]: option for option in (await api.client.get("/v1/catalog/losses")).json()["data"]}
    nkd = losses["nkd"]
    assert nkd["paper"]["url"] == "https://arxiv.org/abs/2303.13005"
    assert nkd["defaults"] == {"kind": "nkd", "weight": 1.0, "teacher": None, "gamma": 1.5, "temperature": 1.0}
    assert nkd["json_schema"]["properties"]["gamma"]["description"]
    assert nkd["description"].startswith("Normalised KD")
    assert nkd["equation"].startswith("-p_y log q_y")
    assert nkd["applies"].startswith("Single-label classification")
    assert nkd["tasks"] == ["image-classification", "text-classification", "token-classification", "causal-lm"]
    assert losses["cross-entropy"]["paper"] is None


async def test_what_may_not_be_left_out_has_no_default(api: Api) -> None:
    optimizers = {option["kind"]: option for option in (await api.client.get("/v1/catalog/optimizers")).json()["data"]}
    assert "lr" not in optimizers["sgd"]["defaults"]
    assert "lr" in optimizers["sgd"]["json_schema"]["required"]


async def test_an_unknown_group_is_named_with_the_known_ones(api: Api) -> None:
    answer = await api.client.get("/v1/catalog/kernels")
    assert answer.status_code == 422
    assert answer.json()["error"]["errors"][0]["accepted"] == f"one of {', '.join(GROUPS)}"
