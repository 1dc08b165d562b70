"""A job of every kind that the contract knows, through a running service: all queued at once, each to its end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from app.recipe.base import Option
from app.recipe.data.augmentation import AUGMENTATIONS
from app.recipe.diagnostics import DIAGNOSTICS
from app.recipe.losses import LOSSES
from app.recipe.methods import METHODS
from app.recipe.students.architectures import STUDENTS, ZOO, Student
from app.recipe.students.hugging_face import is_model_file
from app.recipe.students.layers import ACTIVATIONS, ATTENTIONS, NORMS
from app.recipe.students.quantisation import QUANTISATIONS
from app.recipe.tasks import TASKS
from app.recipe.tasks.multi_label import MANY_LABELS
from stillhouse import Client, Job, ServiceError
from tests import kinds
from tests.kinds import KINDS, job_of, methods, small_job
from tests.kinds_metrics import expected_metrics
from tests.kinds_of_layers import LAYERED
from tests.kinds_of_tables import write_tables
from tests.stillhouse.process import environment, running

Document = dict[str, Any]
WEIGHTS = "model.safetensors"
SECONDS = 1800
"""Longest time that all jobs together may take; two idle cores take two minutes."""
TOGETHER = 4
"""Most kinds of loss in one job."""
LABELS: Document = {"losses": [{"kind": "cross-entropy"}], "epochs": 1}
NUMBERS: Document = {"losses": [{"kind": "mse"}], "epochs": 1}
MLP: Document = {"architecture": "mlp", "hidden": [8]}
BERT: Document = {
    "architecture": "transformers",
    "config": {
        **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 16, "max_position_embeddings": 16},
    },
}
TEXTS: Document = {
    **{"train": "texts.csv", "format": "csv", "input_columns": ["text"], "label_columns": ["label"]},
    "max_length": 8,
}
TAGS: Document = {
    **{"train": "words.jsonl", "format": "jsonl", "input_columns": ["words"], "label_columns": ["tags"]},
    "max_length": 8,
}
GPT2: Document = {
    "architecture": "transformers",
    "config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
}
RUNNING: Document = {"train": "texts.csv", "format": "csv", "input_columns": ["text"], "max_length": 8}
TAGGED: Document = {**TEXTS, "train": "tags.jsonl", "format": "jsonl", "label_columns": ["tags"]}
MANY: Document = {**TAGGED, "label_columns": ["numbers"], "classes": MANY_LABELS + 8}
TABLE: Document = {"train": "table.csv", "format": "csv", "input_columns": ["a", "b"], "label_columns": ["sum"]}
AUGMENTED: dict[str, Document] = {
    "crop": {"padding": 2},
    "cutout": {"size": 2},
}
"""What kinds of augmentation are told; all others do with their defaults."""
STUDENT: dict[str, Document] = {
    "mlp": {"hidden": [8]},
    "cifar-resnet": {"depth": 8, "width": 2},
    "wide-resnet": {"depth": 10},
    "cifar-vgg": {"width": 2},
    "mobilenet-v2": {"multiplier": 0.1},
    "shufflenet-v2": {"size": "0.5x"},
    "vit": {"width": 8, "depth": 1, "heads": 2},
    "transformers": {"config": {**BERT["config"], "model_type": "vit", "patch_size": 4}},
    "shrink": {"layers": 1},
    "convert": {"to": "pre-crmsnorm"},
    "pretrained": {"model": "other"},
    "dual-encoder": {"encoder": BERT, "label_texts": {"day": "the light"}},
}
"""Settings by the architecture of the student."""


RELATIONS = ("embedding-distance", "similarity-matrix", "rkd")
"""Kinds that compare vectors of student and teacher."""
METHOD_JOBS: dict[str, Document] = {
    "export": small_job(
        {"method": {"kind": "export"}},
        {"architecture": "convert"},
        **{"teacher": {"model": "vit"}, "export": ["safetensors", "onnx", "torch-export"]},
    ),
    "mutual": small_job({**LABELS, "method": {"kind": "mutual"}}, MLP),
    "adversarial": small_job(
        {**LABELS, "method": {"kind": "adversarial", "clean_teacher": "cnn", "robust_teacher": "other", "steps": 2}},
        teachers=[{"model": name, "name": name} for name in ("cnn", "other")],
    ),
    "smooth-adversarial": small_job(
        {"losses": [{"kind": "comp-sum"}, {"kind": "kd"}], "method": {"kind": "smooth-adversarial", "steps": 2}}
    ),
    "boundary-samples": small_job({**LABELS, "method": {"kind": "boundary-samples"}, "epochs": 2}),
    "online": small_job({"losses": [{"kind": "cross-entropy"}, {"kind": "bd-kd"}], "method": {"kind": "online"}}, MLP),
    "meta": small_job({"losses": [{"kind": "cross-entropy"}, {"kind": "kd"}], "method": {"kind": "meta"}}, MLP),
    "supernet": small_job(
        {
            "losses": [kinds.RELATION],
            "method": {"kind": "supernet", "spaces": [{"layers": [0.5, 1], "width": [0.5, 1], "ffn_ratio": [0.5]}]},
        },
        {"architecture": "shrink"},
        "embedding",
    ),
    "hpm": small_job({"method": {"kind": "hpm", "hard_share": 1.0}}, {**kinds.VIT, "patch_size": 2}, "self-supervised"),
    "rollback": small_job(
        {**LABELS, "method": {"kind": "rollback", "periods": 3}}, {"architecture": "pretrained", "model": "other"}
    ),
}
"""A job of each training method; of those that generate texts, `tests/test_examples.py` has some."""


def names(options: Iterable[type[Option]], field: str = "kind") -> list[str]:
    return [option.model_fields[field].default for option in options]


STUDENT_OF: TypeAdapter[Any] = TypeAdapter(Student)
DIAGNOSTIC_KINDS = names(DIAGNOSTICS)
OF_IMAGES = names(step for step in AUGMENTATIONS if "images" in step.reads)
LABELLED = [kind for kind in OF_IMAGES if kind not in {step["kind"] for step in kinds.VIEWS["augment"]}]
"""Augmentations of images that the jobs of self-supervision don't have."""
OF_TEXTS = names(step for step in AUGMENTATIONS if "texts" in step.reads)
OF_IMAGE_CLASSES = [
    name
    for name in names(STUDENTS, "architecture")
    if name not in ("timm", "inp-former", "dual-encoder", "transformer")
]
"""Those of classifiers of images, but the one that needs a library which few machines have
(`tests/worker/students/test_timm.py`)."""
ANYWHERE = [
    kind
    for kind, loss in zip(KINDS, LOSSES, strict=True)
    if kind not in kinds.SETTINGS and kind != "cross-entropy" and kinds.task_of(loss) == "image-classification"
]
"""Kinds that look at logits alone: their jobs show the students and augmentations, too."""


def jobs_of_losses() -> Iterator[tuple[str, Document]]:
    """Jobs that have every kind of loss between them, each one several: every attempt is a process of its own, and most
    of its time goes into starting that. Among them are all students and all augmentations of images."""
    for number, name in enumerate(OF_IMAGE_CLASSES):
        job = job_with(ANYWHERE[number :: len(OF_IMAGE_CLASSES)])
        job |= {"student": {"architecture": name, **STUDENT[name]}}
        job |= {"teacher": {"model": "vit"}} if name in ("shrink", "convert") else {}
        if number < len(LABELLED):
            change = LABELLED[number]
            crop: list[Document] = [{"kind": "crop", "padding": 1}] if change == "self-mix" else []
            job["data"] |= {"augment": [*crop, {"kind": change, **AUGMENTED.get(change, {})}]}
        yield f"student {name}", job
    for kinds_of_one in alike([kind for kind in KINDS if kind not in ANYWHERE]):
        yield ", ".join(kinds_of_one), job_with(kinds_of_one)


def alike(among: list[str]) -> Iterator[list[str]]:
    """Kinds whose jobs differ in their recipes alone, up to `TOGETHER`; kinds of a larger group that stand side by side
    in the contract go into different jobs, for one may build on the other."""
    groups: dict[str, list[str]] = {}
    for kind in among:
        rest = {name: value for name, value in job_of(kind).items() if name != "recipe"}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(kind)
    for group in groups.values():
        jobs = -(-len(group) // TOGETHER)
        yield from (group[number::jobs] for number in range(jobs))


def job_with(several: list[str]) -> Document:
    """A job that learns by losses of all these kinds, as `job_of` has each alone."""
    jobs = [job_of(kind) for kind in several]
    recipe = {name: distinct(each["recipe"][name] for each in jobs) for name in ("stages", "losses")}
    return {**jobs[0], "recipe": {**jobs[0]["recipe"], **recipe}}


def distinct(lists: Iterable[list[Document]]) -> list[Document]:
    """The members of all lists, each once."""
    found: list[Document] = []
    for one in chain.from_iterable(lists):
        if one not in found:
            found.append(one)
    return found


def jobs_of_other_data() -> Iterator[tuple[str, Document]]:
    """Jobs on texts, changed in every way, and on numbers."""
    for kind in OF_TEXTS:
        data = {**TEXTS, "augment": [{"kind": kind, **AUGMENTED.get(kind, {})}]}
        yield kind, small_job(LABELS, BERT, "text-classification", data=data)
    given: Document = {"losses": [{"kind": "binary-cross-entropy"}], "epochs": 1}
    dual = {"architecture": "dual-encoder", **STUDENT["dual-encoder"]}
    of_labels: Document = {"losses": [{"kind": "dexml", "criterion": "bce"}], "epochs": 1}
    formats = ["safetensors", "onnx", "onnx-int8", "torch-export"]
    yield "texts of labels", small_job(of_labels, dual, "multi-label-classification", data=TAGGED, export=formats)
    started = {**dual, "encoder": {"architecture": "pretrained", "model": "encoder"}, "labels_per_step": 2}
    called = {**TAGGED, "label_texts": "label-texts.jsonl"}
    yield "texts of labels, started", small_job(of_labels, started, "multi-label-classification", data=called)
    reader = {"architecture": "transformer", "width": 8, "depth": 1, "heads": 2, "attention": {"kind": "sigmoid"}}
    yield "texts by a transformer", small_job(LABELS, reader, "text-classification", data=TEXTS, export=formats)
    yield "labels of texts", small_job(given, BERT, "multi-label-classification", data=TAGGED)
    yield "many labels of texts", small_job(given, BERT, "multi-label-classification", data=MANY)
    mixed = {"train": "labels", "augment": [{"kind": "mixup"}, {"kind": "cutmix"}]}
    yield "labels of mixed images", small_job(given, kinds.CNN, "multi-label-classification", data=mixed)
    yield "regression of a table", small_job(NUMBERS, MLP, "regression", data=TABLE)
    yield "regression of images", small_job(NUMBERS, kinds.CNN, "regression", data={"train": "numbers"})
    for name, student in LAYERED.items():
        yield name, small_job(LABELS, {**student, **STUDENT[student["architecture"]]})
    for name, student in kinds.QUANTISED.items():
        yield name, small_job(LABELS, student, export=None)
    asked = [{"kind": kind, **kinds.DIAGNOSED.get(kind, {})} for kind in DIAGNOSTIC_KINDS if kind != "anomaly-maps"]
    like_its_teacher = {"losses": [*LABELS["losses"], {"kind": "kd"}], "optimizer": {"kind": "sgd", "lr": 1e-6}}
    pretrained = {"architecture": "pretrained", "model": "vit"}
    data = {"train": "classes", "eval_fraction": 0.5}
    more = {"teacher": {"model": "vit"}, "evaluation": {"diagnostics": asked}}
    yield "diagnostics of a classifier", small_job(like_its_teacher, pretrained, data=data, **more)
    given = {"losses": [{"kind": "feature-reconstruction"}, {"kind": "prototype-coherence"}], "epochs": 1}
    drawn = {"diagnostics": [{"kind": "anomaly-maps", "images": 4}]}
    yield "diagnostics of anomalies", small_job(given, kinds.INP_FORMER, "anomaly-detection", evaluation=drawn)
    yield "tags of words", small_job(LABELS, BERT, "token-classification", data=TAGS)
    mined = {**kinds.LISTS, "mining": {"count": 3, "keep": "margin", "margin": 0.01}}
    among: Document = {"losses": [{"kind": "contrastive"}, {"kind": "lg-anna", "relevance": "teacher"}]}
    yield "mined negatives", small_job(among, kinds.ENCODER, "embedding", data=mined)
    taught: Document = {"losses": [{"kind": "cross-entropy"}, {"kind": "kd"}]}
    coded = {**kinds.DECODER, "head": {"kind": "vq-logits", "codes": 8}}
    read = {key: value for key, value in kinds.LINES.items() if key != "tokenizer"}
    yield "codebook", small_job(taught, coded, "causal-lm", data=read)
    shared = {**kinds.CNN, "head": {"kind": "vq-logits", "codes": 7}}
    yield "codebook of classes", small_job(taught, shared, teacher={"model": "vit"}, export=formats)
    yield "continued texts", small_job(LABELS, GPT2, "causal-lm", data=RUNNING)
    like: Document = {"losses": [{"kind": "normface"}, *({"kind": kind} for kind in RELATIONS)]}
    like |= {"batch_size": 4, "samples_per_class": 2, "hard_negatives": {"pool": 12, "every": 2}}
    yield "vectors of images", small_job(like, kinds.CNN, "image-embedding", embedding={"dimensions": 3})
    yield (
        "pairs of images",
        small_job({"losses": [{"kind": "pair-score"}]}, task="image-embedding", data=kinds.TWO_IMAGES),
    )
    views: Document = {"losses": [{"kind": "ntxent"}, {"kind": "embedding-distance"}], "pseudo_labels": {"epochs": 2}}
    yield "views of images", small_job(views, kinds.CNN, "self-supervised", embedding={"dimensions": 3})
    mirror = {"kind": "flip", "pairs": [[0, 1]]}
    data = {"train": "points", "augment": [mirror]}
    yield "every format", small_job(NUMBERS, kinds.CNN, "keypoints", data=data, export=formats)


JOBS: dict[str, Document] = dict([*jobs_of_losses(), *jobs_of_other_data()])
JOBS |= {f"method {kind}": job for kind, job in METHOD_JOBS.items()}


class Service(NamedTuple):
    """A running service, and the ids of what was uploaded and registered, by the names that the jobs have for it."""

    client: Client
    ids: dict[str, str]
    process: subprocess.Popen[str]

    def addressed(self, job: Document) -> Document:
        """The job with ids in the place of names."""
        files = {name: self.ids[job["data"][name]] for name in ("train", "label_texts") if name in job["data"]}
        named = {**job, "data": {**job["data"], **files}}
        if "teacher" in job:
            named["teacher"] = {**job["teacher"], "model": self.ids[job["teacher"]["model"]]}
        if "teachers" in job:
            named["teachers"] = [{**one, "model": self.ids[one["model"]]} for one in job["teachers"]]
        if "model" in job["student"]:
            named["student"] = {**job["student"], "model": self.ids[job["student"]["model"]]}
        if "model" in job["student"].get("encoder", {}):
            encoder = {**job["student"]["encoder"], "model": self.ids[job["student"]["encoder"]["model"]]}
            named["student"] = {**job["student"], "encoder": encoder}
        if asked := job.get("evaluation", {}).get("diagnostics"):
            of_files = [{**one, "data": self.ids[one["data"]]} if "data" in one else one for one in asked]
            named["evaluation"] = {**job["evaluation"], "diagnostics": of_files}
        return named


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("kinds")
    inputs = root / "inputs"
    inputs.mkdir()
    kinds.write_data(inputs)
    write_tables(inputs)
    kinds.write_teachers(inputs)
    with running(environment(root / "data")) as (process, hello), Client(hello["url"], hello["key"]) as client:
        files = {path: client.upload(path).id for path in inputs.iterdir() if path.is_file()}
        ids = {(path.stem if path.suffix == ".npz" else path.name): file for path, file in files.items()}
        for folder in inputs.iterdir():
            if (folder / "tokenizer.json").is_file():
                files_of = [path for path in folder.iterdir() if is_model_file(path.name)]
                whole = {path.name: client.upload(path, reuse=False).id for path in files_of}
                ids[folder.name] = client.register_folder(whole, name=folder.name).id
            elif folder.is_dir():
                config = json.loads((folder / "config.json").read_text())
                weights = client.upload(folder / WEIGHTS, reuse=False).id
                ids[folder.name] = client.register_model(weights, config, folder.name).id
        yield Service(client, ids, process)


@pytest.fixture(scope="module")
def ended(service: Service) -> dict[str, Job]:
    """Every job at its end, by its name; none was waited for before the last was queued."""
    queued = {name: service.client.submit(service.addressed(job)).id for name, job in JOBS.items()}
    return {name: service.client.wait(job, timeout_seconds=SECONDS) for name, job in queued.items()}


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", JOBS)
def test_it_succeeds_and_what_it_made_can_be_fetched(
    service: Service, ended: dict[str, Job], name: str, tmp_path: Path
) -> None:
    job = ended[name]
    assert job.status == "succeeded", job.error
    weights = load_file(service.client.download(job.id, WEIGHTS, tmp_path))
    report = json.loads(service.client.download(job.id, "report.json", tmp_path).read_text())
    assert sum(values.size for values in weights.values()) >= report["student"]["parameters"] > 0
    assert expected_metrics(job.spec) <= report["student"].keys()
    assert report["task"] == job.spec["task"]
    taught = [one["name"] for one in job.spec["teachers"] or [job.spec["teacher"]] if one]
    assert list(report["teachers"]) == taught


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_loss_has_a_curve(service: Service, ended: dict[str, Job], kind: str) -> None:
    name = next(
        name for name, job in JOBS.items() if kind in {term["kind"] for term in job["recipe"].get("losses", ())}
    )
    (series,) = service.client.metrics(ended[name].id, f"train/loss/{kind}")
    assert series.values
    assert np.isfinite(series.values).all()


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
def test_every_diagnostic_stands_in_the_report(service: Service, ended: dict[str, Job], tmp_path: Path) -> None:
    found: list[str] = []
    for job in (ended["diagnostics of a classifier"], ended["diagnostics of anomalies"]):
        told = json.loads(service.client.download(job.id, "report.json", tmp_path).read_text())["diagnostics"]
        found += told
        assert all(one["figures"] for one in told.values())
        pictures = [one["picture"] for one in told.values() if one["picture"]]
        assert all(service.client.download(job.id, name, tmp_path).read_bytes()[1:4] == b"PNG" for name in pictures)
    assert found == DIAGNOSTIC_KINDS


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
def test_a_row_of_a_search_becomes_a_model_of_its_own(service: Service, ended: dict[str, Job], tmp_path: Path) -> None:
    job = ended["method supernet"]
    rows = json.loads(service.client.download(job.id, "search.json", tmp_path).read_text())["rows"]
    smallest = rows[-1]
    model = service.client.extract(str(job.model_id), smallest["row"], "smallest")
    assert (model.name, model.parameters) == ("smallest", smallest["parameters"])
    assert service.client.extract(str(job.model_id), smallest["row"]).id == model.id
    with pytest.raises(ServiceError, match=f"row: there are {len(rows)} sub-networks"):
        service.client.extract(str(job.model_id), len(rows))


def test_together_the_jobs_have_every_method() -> None:
    assert {"supervised", "on-policy", "sequence-level", "untrained", *METHOD_JOBS} == set(names(METHODS))


def test_together_the_jobs_have_every_kind_of_layer() -> None:
    described = [job["student"] for job in JOBS.values()]
    students = [
        STUDENT_OF.validate_python(each) for each in described if each["architecture"] in names(ZOO, "architecture")
    ]
    layers = [getattr(student, field, None) for student in students for field in ("norm", "activation", "attention")]
    assert {type(layer) for layer in layers} >= {*NORMS, *ACTIVATIONS, *ATTENTIONS}
    assert set(kinds.QUANTISED) == set(names(QUANTISATIONS))


def test_together_the_jobs_have_every_task_student_and_augmentation() -> None:
    jobs = JOBS.values()
    assert {job["task"] for job in jobs} == set(TASKS)
    assert {job["student"]["architecture"] for job in jobs} == set(names(STUDENTS, "architecture")) - {"timm"}
    assert {step["kind"] for job in jobs for step in job["data"].get("augment", ())} == {*OF_IMAGES, *OF_TEXTS}


@pytest.mark.long
@pytest.mark.parametrize("method", methods())
def test_every_method_of_the_examples_is_valid(service: Service, method: str) -> None:
    answer = service.client.validate(service.addressed(small_job(methods()[method])))
    assert answer.valid, answer
