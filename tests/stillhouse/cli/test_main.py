"""The command line against the real service: what it prints, for people and for programs, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import ValidationError

from app.core.settings import Settings
from stillhouse import Client
from stillhouse.cli.main import app
from tests.stillhouse.cli.command_lines import Run, in_background, submitted
from tests.stillhouse.conftest import LiveService, tell


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))  # type: ignore[arg-type]  # has commands, so is a group
        else:
            yield (*path, name), command


def test_every_command_has_help_and_json() -> None:
    found = dict(commands(typer.main.get_command(app)))  # type: ignore[arg-type]  # the top is a group
    assert {("up",), ("submit",), ("watch",), ("keys", "create"), ("doctor",)} <= set(found)
    for path, command in found.items():
        assert command.help, path
        assert "--json" in {name for parameter in command.params for name in parameter.opts}, path


def test_the_command_line_starts_without_the_service_or_torch() -> None:
    code = "import sys, stillhouse.cli.main; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "sqlalchemy", "fastapi", "uvicorn", "celery", "obstore"} & set(loaded)


def test_a_job_file_is_submitted_with_its_data(run: Run, job_file: Path, client: Client) -> None:
    first = submitted(run, job_file)
    second = submitted(run, job_file, "--set", "recipe.optimizer.lr=1e-3", "--set", 'labels.run="2"')
    assert first["status"] == "queued"
    assert first["spec"]["recipe"]["optimizer"]["lr"] == 0.01
    assert second["spec"]["recipe"]["optimizer"]["lr"] == 0.001
    assert second["spec"]["labels"] == {"team": "vision", "run": "2"}
    assert first["spec"]["data"]["train"] == second["spec"]["data"]["train"]
    assert len(list(client.files())) == 1


@pytest.mark.parametrize("address", ["here", "here:0", "here:65536", ":29500", "here:port"])
def test_machines_meet_at_an_address_with_a_port(run: Run, address: str) -> None:
    result = run("node", address)
    assert result.exit_code == 2
    assert repr(address) in result.stderr
    with pytest.raises(ValidationError, match="worker_rendezvous"):
        Settings(worker_rendezvous=address)


def test_a_missing_data_file_is_named_before_anything_is_sent(run: Run, job_file: Path, client: Client) -> None:
    result = run("submit", job_file, "--set", "data.eval=nothing.npz")
    assert result.exit_code == 2
    assert "data.eval" in result.stderr
    assert "nothing.npz" in result.stderr
    assert list(client.jobs()) == []


def test_wrong_fields_are_shown_as_a_table_and_as_json(run: Run, job_file: Path) -> None:
    words = ("submit", job_file, "--set", "recipe.losses[0].kind=magic", "--set", "recipe.epochs=0")
    shown = run(*words)
    assert shown.exit_code == 1
    assert shown.stdout == ""
    assert "recipe.epochs" in shown.stderr
    assert "cross-entropy" in shown.stderr
    told = run(*words, "--json")
    assert told.exit_code == 1
    error = json.loads(told.stdout)["error"]
    assert error["code"] == "invalid_fields"
    assert len(error["errors"]) == 2
    assert told.stderr == ""


def test_validate_tells_steps_or_what_is_wrong(run: Run, job_file: Path) -> None:
    good = run("validate", job_file)
    assert good.exit_code == 0
    assert "2 (1 per epoch)" in good.stdout
    bad = run("validate", job_file, "--set", "student.hidden=[0]", "--json")
    assert bad.exit_code == 1
    assert [error["param"] for error in json.loads(bad.stdout)["errors"]] == ["student.hidden[0]"]


def test_lists_and_single_jobs(run: Run, job_file: Path) -> None:
    job = submitted(run, job_file)
    submitted(run, job_file, "--set", "name=other")
    listed = json.loads(run("jobs", "--name", "tiny", "--label", "team:vision", "--json").stdout)
    assert [item["id"] for item in listed["data"]] == [job["id"]]
    shown = run("jobs").stdout
    assert job["id"] in shown
    assert "other" in shown
    assert "queued" in run("show", job["id"]).stdout
    assert json.loads(run("show", job["id"], "--json").stdout)["id"] == job["id"]


def test_a_job_can_be_steered(run: Run, job_file: Path) -> None:
    job = submitted(run, job_file)["id"]
    assert json.loads(run("prioritise", job, "90", "--json").stdout)["priority"] == 90
    assert run("pause", job).stdout == f"{job} is paused\n"
    assert run("resume", job).stdout == f"{job} is queued\n"
    assert run("cancel", job).stdout == f"{job} is cancelled\n"
    refused = run("resume", job)
    assert refused.exit_code == 1
    assert "cancelled" in refused.stderr
    twin = json.loads(run("clone", job, "--set", "recipe.epochs=3", "--set", "name=twin", "--json").stdout)
    assert (twin["name"], twin["spec"]["recipe"]["epochs"], twin["cloned_from"]) == ("twin", 3, job)
    assert twin["spec"]["recipe"]["optimizer"]["lr"] == 0.01


def test_watch_ends_with_the_job_and_shows_progress(run: Run, service: LiveService, job_file: Path) -> None:
    job = submitted(run, job_file)["id"]
    lease = service.start(job)
    service.report(lease, 5, loss=0.25)
    watching = in_background(run, "watch", job)
    service.report(lease, 9, loss=0.125)
    service.succeed(lease, {"config.json": b"{}"})
    result = watching()
    assert result.exit_code == 0
    assert "/10" in result.stdout
    assert "succeeded" in result.stdout
    assert f"stillhouse download {job}" in result.stdout


def test_watch_fails_with_the_job_and_says_why(run: Run, service: LiveService, job_file: Path) -> None:
    job = submitted(run, job_file)["id"]
    service.fail(service.start(job), "the loss is NaN")
    result = run("watch", job)
    assert result.exit_code == 1
    assert "the loss is NaN at step 3 [user: nan_loss]" in result.stdout


def test_watch_prints_json_lines(run: Run, service: LiveService, job_file: Path) -> None:
    job = submitted(run, job_file)["id"]
    service.fail(service.start(job), "the loss is NaN")
    result = run("watch", job, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["job_id"] for line in lines} == {job}
    assert lines[-1]["data"]["to"] == "failed"


def test_submit_can_watch(run: Run, service: LiveService, job_file: Path, client: Client) -> None:
    watched = threading.Event()
    service.faults.next("/events", tell(watched))
    watching = in_background(run, "submit", str(job_file), "--watch", "--json")
    assert watched.wait(20)
    [job] = client.jobs()
    service.succeed(service.start(job.id), {"config.json": b"{}"})
    result = watching()
    assert result.exit_code == 0
    *_, ended, came_to = map(json.loads, result.stdout.splitlines())
    assert ended["data"]["to"] == "succeeded"
    assert (came_to["object"], came_to["job_id"], came_to["metric"]) == ("job.result", job.id, "accuracy")


def test_downloads_go_to_the_folder_that_is_named(
    run: Run, service: LiveService, job_file: Path, tmp_path: Path
) -> None:
    job = submitted(run, job_file)["id"]
    model = service.succeed(service.start(job), {"config.json": b"{}", "model.safetensors": b"weights"})
    result = run("download", job, "-o", tmp_path / "a", "--json")
    assert [Path(item["path"]).read_bytes() for item in json.loads(result.stdout)["data"]] == [b"{}", b"weights"]
    one = run("download", model, "-o", tmp_path / "b", "--name", "config.json")
    assert one.stdout == f"{tmp_path / 'b' / 'config.json'}\n"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["config.json"]
    none = run("download", job, "-o", tmp_path / "c", "--name", "nothing")
    assert none.exit_code == 2
    assert "nothing" in none.stderr
    assert "made by" in run("models", model).stdout
    assert model in run("models").stdout
    assert "config.json" in run("show", job).stdout


def test_files_and_weights_are_sent(
    run: Run, data_file: Path, weights: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    sent = json.loads(run("upload", data_file, weights[0], "--json").stdout)["data"]
    assert [item["name"] for item in sent] == ["digits.npz", "model.safetensors"]
    config = tmp_path / "config.json"
    config.write_text(json.dumps(weights[1]))
    made = json.loads(run("register", weights[0], config, "--name", "mine", "--json").stdout)
    assert made["name"] == "mine"
    missing = run("upload", tmp_path / "nothing.npz")
    assert missing.exit_code == 2
    assert "nothing.npz" in missing.stderr
