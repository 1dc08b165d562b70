"""The images and the compose file: held against the settings and the programs, then run as processes.

No Docker engine is needed: the commands and environments of the file run here, with the addresses of real servers in
place of the containers' names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import httpx
import numpy as np
import pytest
import typer
from celery.bin.worker import worker as celery_worker
from safetensors.numpy import load_file
from sqlalchemy import make_url

from app.core.settings import Settings
from app.recipe.job import Queue
from stillhouse import Client
from stillhouse.cli.main import app as command_line
from tests.containers import FILLED_IN, OURS, Api, Broker, Container, Deployment
from tests.deployment import ROOT, VARIABLE, Service, Unset, compose, interpolate, services, stages
from tests.servers import S3, PostgreSQL
from tests.servers.ports import reserved_port

WORKERS = ["worker", "worker-gpu"]


def settings_of(service: Service, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that the service's container would run with."""
    for name in [name for name in os.environ if name.startswith("STILLHOUSE_")]:
        monkeypatch.delenv(name)
    assert service.stage is not None
    for name, value in (service.stage.environment | service.environment(FILLED_IN)).items():
        if name.startswith("STILLHOUSE_"):
            monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_a_container_is_a_setting_and_has_a_legal_value(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = services()[name]
    assert service.stage is not None
    ours = {key for key in service.stage.environment | service.raw["environment"] if key.startswith("STILLHOUSE_")}
    assert ours <= {f"STILLHOUSE_{field.upper()}" for field in Settings.model_fields}
    assert settings_of(service, monkeypatch).resolved_database_url.startswith("postgresql+psycopg://")


@pytest.mark.parametrize("name", ["STILLHOUSE_SECRET", "POSTGRES_PASSWORD", "BROKER_PASSWORD", "STORE_SECRET_KEY"])
def test_nothing_starts_without_its_secrets(name: str) -> None:
    with pytest.raises(Unset, match=name):
        interpolate((ROOT / "docker-compose.yml").read_text(), FILLED_IN | {name: ""})


def test_the_example_of_env_names_every_variable() -> None:
    asked = {match["name"] for match in VARIABLE.finditer((ROOT / "docker-compose.yml").read_text())}
    asked |= {name for service in services().values() for name, value in environment_of(service) if value is None}
    named = re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert set(named) == asked


BY_ITS_COMMAND = {"STILLHOUSE_QUEUES"}
"""Settings that the command of a worker gives, by `-Q`."""


def test_every_setting_is_passed() -> None:
    passed = set(BY_ITS_COMMAND)
    for name in OURS:
        service = services()[name]
        assert service.stage is not None
        passed |= service.stage.environment.keys() | service.raw["environment"].keys()
    assert {f"STILLHOUSE_{field.upper()}" for field in Settings.model_fields} - passed == set()


@pytest.mark.parametrize("name", services())
def test_a_service_has_a_limit_of_memory_and_its_log_is_rotated(name: str) -> None:
    raw = services()[name].raw
    assert re.fullmatch(r"\d+[mg]", interpolate(raw["mem_limit"], FILLED_IN))
    assert {"max-size", "max-file"} <= raw["logging"]["options"].keys()


def test_images_of_others_have_a_full_version() -> None:
    images = [service.raw["image"] for service in services().values() if service.stage is None]
    images += re.findall(r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert [image for image in images if not re.search(r":\d+\.\d+", image)] == []


def test_the_broker_asks_for_the_password_that_its_clients_have(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [interpolate(word, FILLED_IN) for word in services()["broker"].command]
    broker = make_url(settings_of(services()["worker"], monkeypatch).broker_url.get_secret_value())
    assert command[command.index("--requirepass") + 1] == broker.password == FILLED_IN["BROKER_PASSWORD"]


def environment_of(service: Service) -> Iterator[tuple[str, object]]:
    yield from service.raw.get("environment", {}).items()


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_knows_no_key_of_the_api(name: str) -> None:
    environment = services()[name].environment(FILLED_IN)
    assert not {"STILLHOUSE_SECRET", "STILLHOUSE_BOOTSTRAP_KEY"} & set(environment)


@pytest.mark.parametrize("name", ["migrate", "api"])
def test_commands_of_stillhouse_exist(name: str) -> None:
    program, subcommand = services()[name].command
    assert [script.value for script in entry_points(group="console_scripts", name=program)] == [
        "stillhouse.cli.main:app"
    ]
    assert subcommand in typer.main.get_command(command_line).commands  # type: ignore[attr-defined]  # a click group


@pytest.mark.parametrize("name", WORKERS)
def test_celery_takes_the_command_of_a_worker(name: str) -> None:
    program, option, application, verb, *arguments = services()[name].command
    assert entry_points(group="console_scripts", name=program)
    assert (option, verb) == ("-A", "worker")
    ours = SimpleNamespace(app=import_module(application).app)
    options = celery_worker.make_context("worker", arguments, obj=ours).params
    assert options["concurrency"] == 1
    assert set(options["queues"]) <= set(get_args(Queue))


def test_every_queue_has_a_worker() -> None:
    served = {queue for name in WORKERS for queue in queues_of(services()[name])}
    assert served == set(get_args(Queue))


def queues_of(service: Service) -> list[str]:
    return service.command[service.command.index("-Q") + 1].split(",")


def test_only_the_gpu_worker_asks_for_gpus_and_only_in_its_profile() -> None:
    asking = {name for name, service in services().items() if "gpu" in str(service.raw.get("deploy"))}
    assert asking == {"worker-gpu"}
    assert services()["worker-gpu"].raw["profiles"] == ["gpu"]


def test_the_port_of_the_api_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    service, stage = services()["api"], stages()["api"]
    settings = settings_of(service, monkeypatch)
    published = interpolate(service.raw["ports"][0], FILLED_IN).rsplit(":", 1)[-1]
    checked = re.findall(r"127\.0\.0\.1:(\d+)/livez", stage.health_check[-1])
    assert {stage.last("EXPOSE"), published, *checked} == {str(settings.port)}
    assert settings.host == "0.0.0.0"


def test_addresses_lead_to_services(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(services()["api"], monkeypatch)
    database, broker = make_url(settings.resolved_database_url), make_url(settings.broker_url.get_secret_value())
    store = httpx.URL(settings.store_endpoint or "")
    assert {database.host, broker.host, store.host} <= set(services())
    assert f"-s3.port={store.port}" in services()[store.host].command
    owner = services()["postgres"].environment(FILLED_IN)
    expected = (owner["POSTGRES_USER"], owner["POSTGRES_PASSWORD"], owner["POSTGRES_DB"])
    assert (database.username, database.password, database.database) == expected


def test_the_store_has_the_bucket_and_the_credentials_of_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(services()["worker"], monkeypatch)
    assert settings.store_access_key is not None
    assert settings.store_secret_key is not None
    keys = (settings.store_access_key.get_secret_value(), settings.store_secret_key.get_secret_value())
    store = services()["store"].environment(FILLED_IN)
    assert (store["AWS_ACCESS_KEY_ID"], store["AWS_SECRET_ACCESS_KEY"]) == keys
    bucket = settings.store_url.removeprefix("s3://")
    assert f"s3.bucket.create -name {bucket}'" in services()["store-bucket"].command[0]


@pytest.mark.parametrize("name", services())
def test_every_service_shows_its_health_or_ends(name: str) -> None:
    service = services()[name]
    assert service.is_one_shot or service.has_health_check
    for other, condition in service.needs.items():
        expected = "service_completed_successfully" if services()[other].is_one_shot else "service_healthy"
        assert condition == expected, other


def test_only_the_api_is_reached_from_outside() -> None:
    assert [name for name, service in services().items() if "ports" in service.raw] == ["api"]
    connected = {name for name, service in services().items() if "outside" in service.raw["networks"]}
    assert connected == {"api"}
    assert compose()["networks"]["inside"] == {"internal": True}


def test_every_volume_is_declared_and_used_by_one_kind_of_service() -> None:
    used = [volume.split(":")[0] for service in services().values() for volume in service.raw.get("volumes", [])]
    assert set(used) == set(compose()["volumes"])


@pytest.mark.parametrize("name", ["api", "worker"])
def test_an_image_runs_as_an_ordinary_user(name: str) -> None:
    assert stages()[name].last("USER") == "stillhouse"


@pytest.mark.parametrize("name", OURS)
def test_build_arguments_exist(name: str) -> None:
    given = services()[name].raw["build"].get("args", {})
    assert set(given) <= {argument for stage in stages().values() for argument in stage.arguments}


def test_the_worker_s_image_has_the_torch_that_the_tests_ran_with() -> None:
    makefile = dict(re.findall(r"^(\w+) \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    arguments = stages()["build-worker"].arguments
    assert {name: arguments[name] for name in ("TORCH", "TORCH_CPU_INDEX")} == {
        name: makefile[name] for name in ("TORCH", "TORCH_CPU_INDEX")
    }


@pytest.mark.parametrize("stage", ["build-api", "build-worker"])
def test_the_images_are_built_from_what_docker_is_sent(stage: str) -> None:
    sent = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = [source for line in stages()[stage].all("COPY") for source in line.split()[:-1]]
    assert set(copied) == sent
    assert [source for source in copied if not (ROOT / source).exists()] == []


@pytest.fixture(scope="module")
def deployment(
    postgres_server: PostgreSQL, s3_moto: S3, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with database_of_the_file(postgres_server), Broker.running() as broker, reserved_port() as port:
        addresses = {
            "@postgres:5432": f"@127.0.0.1:{postgres_server.port}",
            "@broker:6379": f"@127.0.0.1:{broker.port}",
            "//store:8333": f"//127.0.0.1:{s3_moto.port}",
        }
        folders = {name: tmp_path_factory.mktemp(name) for name in OURS}
        Container(folders["migrate"], services()["migrate"], addresses).run()
        api = Api(folders["api"], services()["api"], addresses, port)
        worker = Container(folders["worker"], services()["worker"], addresses)
        try:
            api.start()
            worker.start()
            with Client(f"http://127.0.0.1:{api.port}", FILLED_IN["STILLHOUSE_BOOTSTRAP_KEY"]) as client:
                yield Deployment(api, worker, client)
        finally:
            worker.stop()
            api.stop()


@contextmanager
def database_of_the_file(server: PostgreSQL) -> Iterator[None]:
    """The role and the database that the postgres image would make."""
    environment = services()["postgres"].environment(FILLED_IN)
    database, user = environment["POSTGRES_DB"], environment["POSTGRES_USER"]
    server.execute("create role {} login", user)
    server.execute("create database {} owner {}", database, user)
    try:
        yield
    finally:
        server.execute("drop database {} with (force)", database)
        server.execute("drop role {}", user)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Sixty 8 x 8 pictures of three classes that a small net can tell apart."""
    labels = np.arange(60) % 3
    pictures = np.random.default_rng(0).integers(0, 40, (60, 8, 8)) + 90 * labels[:, None, None]
    path = tmp_path / "pictures.npz"
    np.savez(path, x=pictures.astype(np.uint8), y=labels)
    return path


def test_a_job_goes_from_the_post_to_the_downloaded_model(deployment: Deployment, digits: Path, tmp_path: Path) -> None:
    client = deployment.client
    job = client.submit(
        {
            "data": {"train": client.upload(digits).id},
            "student": {"architecture": "mlp"},
            "recipe": {"losses": [{"kind": "cross-entropy"}], "epochs": 2, "batch_size": 16},
            "resources": {"queue": "cpu"},
            "export": ["safetensors"],
        }
    )
    job = client.wait(job.id, timeout_seconds=900)
    assert job.status == "succeeded", (job.error, deployment.worker.log[-4000:])
    artifacts = {artifact.name: artifact for artifact in client.artifacts(job.id)}
    for artifact in artifacts.values():
        path = client.download(job.id, artifact.name, tmp_path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact.sha256
    assert load_file(tmp_path / "model.safetensors")


def test_the_health_checks_of_the_images_tell_life_from_death(deployment: Deployment) -> None:
    assert deployment.api.health() == 0
    assert deployment.worker.health() == 0
    tick = deployment.worker.folder / "tick"
    os.utime(tick, (0, 0))
    assert deployment.worker.health() != 0


def test_a_trainer_is_told_no_secret(deployment: Deployment) -> None:
    family = deployment.worker.process.children(recursive=True)
    trainers = [process for process in family if "worker.trainer" in process.cmdline()]
    assert trainers
    for trainer in trainers:
        environment = trainer.environ()
        assert not [name for name in environment if name.startswith("STILLHOUSE_")]
        assert not set(FILLED_IN.values()) & set(environment.values())
