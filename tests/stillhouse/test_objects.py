"""The client's objects are those of the OpenAPI document: neither can change without the other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

import stillhouse
from app.core.settings import Settings
from app.main import create_app
from stillhouse import FieldProblem, Job, objects
from stillhouse.objects import Reply

SCHEMAS: dict[str, dict[str, Any]] = create_app(Settings()).openapi()["components"]["schemas"]
STANDS_FOR: dict[type[BaseModel], tuple[str, ...]] = {
    FieldProblem: ("FieldError",),
    objects.Artifact: ("ArtifactView",),
    objects.Baseline: ("AloneView",),
    objects.CatalogOption: ("OptionView",),
    objects.CatalogPaper: ("PaperView",),
    objects.Checkpoint: ("CheckpointView",),
    objects.DefaultChoice: ("DefaultView",),
    objects.DeviceEstimate: ("DeviceEstimateView",),
    objects.Estimate: ("EstimateView",),
    objects.Event: ("EventView",),
    objects.Figures: ("ResultView",),
    objects.File: ("FileView",),
    objects.Job: ("JobView",),
    objects.JobFailure: ("JobErrorView",),
    objects.Key: ("NewKeyView", "KeyView"),
    objects.LearnedFrom: ("LearnedFromView",),
    objects.ModelFile: ("ModelFileView",),
    objects.Modules: ("ModulesView",),
    objects.Part: ("PartView",),
    objects.Phase: ("PhaseView",),
    objects.Progress: ("ProgressView",),
    objects.Recommendation: ("RecommendationView",),
    objects.RecommendedRecipe: ("RecommendedRecipeView",),
    objects.Remark: ("WarningView",),
    objects.ReportWarning: ("ReportWarningView",),
    objects.Result: ("JobResultView",),
    objects.Series: ("SeriesView",),
    objects.StoredModel: ("ModelDetailView", "ModelView"),
    objects.Upload: ("UploadView",),
    objects.Validation: ("ValidationView",),
}
"""Schemas of each object; of several, the first has every field."""
OPEN = {"ModelConfig"}
"""Schemas that the client passes on as plain documents."""
NAMES = {name: kind.__name__ for kind, names in STANDS_FOR.items() for name in names}


def form(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """What a JSON Schema admits: names of types, lists and dictionaries of them, objects by the client's name.

    Values of an enumeration are text, since a newer service may have more of them; limits are the service's affair.
    """
    match schema:
        case {"$ref": reference}:
            name = reference.rsplit("/", 1)[-1]
            if name in OPEN:
                return {"object"}
            name = NAMES.get(name, name)
            inner = definitions[name if name in definitions else reference.rsplit("/", 1)[-1]]
            return {name} if inner.get("type") == "object" else form(inner, definitions)
        case {"allOf": [only]}:
            return form(only, definitions)
        case {"anyOf": options}:
            return set[Any]().union(*(form(option, definitions) for option in options))
        case {"type": "array", "items": items}:
            return {("array", frozenset(form(items, definitions)))}
        case {"type": "object", "additionalProperties": dict(values)} if values:
            return {("object", frozenset(form(values, definitions)))}
        case {"type": "string", "format": format}:
            return {f"string {format}"}
        case {"type": kind}:
            return {kind}
    return {"anything"}


def shown(types: set[Any]) -> str:
    return " or ".join(sorted(map(str, types)))


def differences(kind: type[BaseModel], name: str, *, whole: bool) -> list[str]:
    """In what an object differs from the schema that it stands for."""
    own = kind.model_json_schema()
    mine, schema = own["properties"], SCHEMAS[name]
    theirs = {field: value for field, value in schema["properties"].items() if field != "object"}
    found = [f"{field} is missing" for field in theirs.keys() - mine.keys()]
    found += [f"{field} does not exist" for field in mine.keys() - theirs.keys() if whole]
    required = set(own.get("required", ()))
    found += [f"{field} may be left out" for field in required & theirs.keys() - set(schema.get("required", ()))]
    for field in mine.keys() & theirs.keys():
        got, wanted = form(mine[field], own.get("$defs", {})), form(theirs[field], SCHEMAS)
        absent = {"null"} if field not in required else set()  # an older service does not send it
        if not wanted <= got <= wanted | absent:
            found.append(f"{field} is {shown(got)}, not {shown(wanted)}")
    return sorted(found)


@pytest.mark.parametrize("kind", STANDS_FOR, ids=lambda kind: kind.__name__)
def test_an_object_has_the_fields_of_its_schema(kind: type[BaseModel]) -> None:
    for number, name in enumerate(STANDS_FOR[kind]):
        assert not differences(kind, name, whole=number == 0), name


def test_every_object_stands_for_a_schema() -> None:
    kinds = {kind for kind in vars(objects).values() if isinstance(kind, type) and issubclass(kind, Reply)}
    assert kinds - {Reply} | {FieldProblem} == set(STANDS_FOR)


def test_what_a_user_gets_can_be_imported_from_the_package() -> None:
    own = {kind.__name__ for kind in STANDS_FOR} - {"Part", "Upload"}  # the client keeps these to itself
    assert own <= set(stillhouse.__all__)
    assert all(getattr(stillhouse, name).__doc__ for name in stillhouse.__all__)


class Drifted(Reply):
    """An artifact with a field too many, one too few, one of another type, and one that may be null."""

    id: str
    name: str | None
    media_type: str
    size: str
    sha256: str
    attempt: int
    colour: str = "red"


def test_what_drifts_apart_is_named() -> None:
    assert differences(Drifted, "ArtifactView", whole=True) == [
        "colour does not exist",
        "created_at is missing",
        "name is null or string, not string",
        "size is string, not integer",
    ]


def test_fields_of_a_newer_service_are_kept() -> None:
    about = {"id": "job_1", "status": "dreaming", "is_final": False, "priority": 50, "queue": "any", "spec": {}}
    job = Job.model_validate({**about, "attempt": 0, "max_attempts": 3, "created_at": "2030-01-01T00:00:00Z", "new": 1})
    assert job.model_dump()["new"] == 1
    assert job.status == "dreaming"
