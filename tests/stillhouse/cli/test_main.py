"""The command line against the real service: what it prints, for people and for programs, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from app.core.settings import Settings
from stillhouse import Client, ServiceError
from stillhouse.cli.main import app
from tests.stillhouse.conftest import LiveService, job_document, tell

Run = Callable[..., Result]


@pytest.fixture
def run(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line against the service of this test."""
    monkeypatch.setenv("STILLHOUSE_URL", service.url)
    monkeypatch.setenv("STILLHOUSE_API_KEY", service.key)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def job_file(data_file: Path) -> Path:
    """A job beside its data file."""
    path = data_file.with_name("job.yaml")
    path.write_text(
        "name: tiny\nlabels: {team: vision}\ndata: {train: digits.npz}\n"
        "student: {architecture: mlp, hidden: [4]}\n"
        "recipe: {losses: [{kind: cross-entropy}], optimizer: {kind: adamw, lr: 1e-2}, epochs: 2}\n"
    )
    return path


def submitted(run: Run, job_file: Path, *words: str) -> dict[str, Any]:
    result = run("submit", job_file, "--json", *words)
    assert result.exit_code == 0, result.output
    job: dict[str, Any] = json.loads(result.stdout)
    return job


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


def in_background(run: Run, *words: str) -> Callable[[], Result]:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(*words)))
    thread.start()

    def result() -> Result:
        thread.join(20)
        return results[0]

    return result


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


def test_a_torch_file_and_a_folder_become_models(
    run: Run, weights: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    saved, config, renames = tmp_path / "teacher.pt", tmp_path / "config.json", tmp_path / "renames.yaml"
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("archive/data.pkl", b"read by nobody here")
    config.write_text(json.dumps(weights[1]))
    renames.write_text("strip: [module.]\nrename: [{from: 'fc{i}.', to: '{i}.'}]\n")
    order = ("--checkpoint-key", "state_dict", "--key-map", renames)
    assert json.loads(run("register", saved, config, *order, "--json").stdout)["format"] == "torch"
    assert run("register", saved).exit_code == 2
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(weights[0].read_bytes())
    (folder / "modeling.py").write_text("is left out")
    made = json.loads(run("register", folder, "--json").stdout)
    assert [file["name"] for file in made["files"]] == ["config.json", "model.safetensors"]
    assert made["id"] in run("models").stdout
    assert run("register", folder, *order).exit_code == 2


def test_the_catalogue_and_keys(run: Run) -> None:
    assert "nkd" in run("catalog", "losses").stdout
    assert {item["kind"] for item in json.loads(run("catalog", "losses", "--json").stdout)["data"]} >= {"kd"}
    made = json.loads(run("keys", "create", "ci", "--scope", "read", "--json").stdout)
    assert made["key"].startswith("still_")
    assert "ci" in run("keys", "list").stdout
    assert json.loads(run("keys", "revoke", made["id"], "--json").stdout)["revoked_at"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("jobs", "--limit", "0"), 2),
        (("jobs", "--nonsense"), 2),
        (("nonsense",), 2),
        (("show",), 2),
        (("show", "job_none"), 1),
        (("catalog", "nonsense"), 1),
        (("submit", "/no/such/job.yaml"), 2),
    ],
)
def test_exit_codes(run: Run, words: tuple[str, ...], code: int) -> None:
    assert run(*words).exit_code == code


def test_a_service_that_is_down_is_exit_code_three_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("STILLHOUSE_API_KEY", "still_x")
    result = CliRunner().invoke(app, ["jobs"])
    assert result.exit_code == 3
    assert "stillhouse up" in result.stderr
    told = CliRunner().invoke(app, ["jobs", "--json"])
    assert told.exit_code == 3
    assert json.loads(told.stdout)["error"]["code"] == "unreachable"


def test_no_service_known_is_exit_code_three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STILLHOUSE_URL", "STILLHOUSE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STILLHOUSE_DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(app, ["jobs"])
    assert result.exit_code == 3
    assert "stillhouse up" in result.stderr


def test_text_from_the_service_is_not_read_as_markup(run: Run, service: LiveService, job_file: Path) -> None:
    job = submitted(run, job_file, "--set", "name='[red]x[/red]'")["id"]
    service.fail(service.start(job), "bad [bold]thing[/bold]")
    assert "[red]x[/red]" in run("jobs").stdout
    assert "bad [bold]thing[/bold]" in run("show", job).stdout
    assert "bad [bold]thing[/bold]" in run("watch", job).stdout


def test_job_documents_need_not_be_files_of_ours(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job_document("file_none")))
    result = run("submit", path)
    assert result.exit_code == 1
    assert "file_none" in result.stderr


def test_the_version_is_told(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"stillhouse {version('stillhouse')}\n")


def test_what_a_job_came_to_is_shown_wherever_it_is_looked_at(
    run: Run, service: LiveService, job_file: Path, client: Client
) -> None:
    job = submitted(run, job_file)["id"]
    service.succeed(service.start(job), {"config.json": b"{}", "model.onnx": b"x"})
    for shown in (run("show", job), run("watch", job)):
        assert "accuracy of the student  0.5" in shown.stdout
        assert "config.json, model.onnx" in shown.stdout
        assert f"stillhouse download {job}" in shown.stdout
    assert "accuracy 0.5" in run("jobs").stdout
    assert client.result(job).value == 0.5


def test_an_interrupted_watch_says_that_the_job_goes_on(
    run: Run, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stillhouse.cli.board.follow", interrupted)
    result = run("submit", job_file, "--watch")
    [job] = json.loads(run("jobs", "--json").stdout)["data"]
    assert result.exit_code == 130
    assert "the job continues" in result.stderr
    assert f"stillhouse watch {job['id']}" in result.stderr
    assert f"stillhouse cancel {job['id']}" in result.stderr


def test_a_queue_that_nobody_serves_is_told_at_the_door_and_while_the_job_waits(run: Run, job_file: Path) -> None:
    told = "no worker is running"
    assert told in run("validate", job_file).stdout
    assert told in run("submit", job_file).stdout
    assert told in run("jobs").stdout
    [job] = json.loads(run("jobs", "--json").stdout)["data"]
    assert told in run("show", job["id"]).stdout


def test_logs_metrics_and_files_are_listed(run: Run, service: LiveService, job_file: Path) -> None:
    job = submitted(run, job_file)["id"]
    assert "nothing was measured" in run("metrics", job).stdout
    lease = service.start(job)
    for step, loss in ((1, 0.75), (2, 0.25)):
        service.report(lease, step, loss=loss)
    assert "no files: it is running" in run("files", job).stdout
    assert "it is running" in run("download", job).stderr
    service.succeed(lease, {"config.json": b"{}"})
    summary = next(line.split() for line in run("metrics", job).stdout.splitlines() if "train/loss" in line)
    assert summary == ["train/loss", "0.75", "0.25", "0.25", "0.75", "2"]
    values = [line.split() for line in run("metrics", job, "--name", "train/loss").stdout.splitlines()]
    assert values == [["step", "train/loss"], ["1", "0.75"], ["2", "0.25"]]
    assert "claimed by test" in run("logs", job).stdout
    assert run("logs", job, "--level", "error").stdout == "no events\n"
    assert "config.json" in run("files", job).stdout
    assert "digits.npz" in run("files").stdout


def test_jobs_files_and_models_are_deleted(run: Run, service: LiveService, job_file: Path, client: Client) -> None:
    job = submitted(run, job_file)["id"]
    refused = run("delete", job)
    assert (refused.exit_code, "can't be deleted" in refused.stderr) == (1, True)
    service.succeed(service.start(job), {"config.json": b"{}"})
    [model], [file] = list(client.models()), list(client.files())
    assert run("delete", job, model.id, file.id).exit_code == 0
    assert (list(client.jobs()), list(client.models()), list(client.files())) == ([], [], [])
    assert run("delete", "key_1").exit_code == 2


def test_a_model_is_named_after_its_file_and_its_modules_are_listed(
    run: Run, weights: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, description = weights
    config = tmp_path / "description.json"
    config.write_text(json.dumps(description))
    model = json.loads(run("register", path, config, "--json").stdout)
    assert model["name"] == "model"
    assert run("modules", model["id"]).stdout.split() == ["0", "1", "2", "3"]


def test_another_librarys_config_is_one_sentence(
    run: Run, client: Client, weights: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    library = {"model_type": "bert", **{f"key_{number}": number for number in range(30)}}
    config.write_text(json.dumps(library))
    result = run("register", weights[0], config)
    assert (result.exit_code, "save_pretrained" in result.stderr) == (2, True)
    with pytest.raises(ServiceError) as refused:
        client.register_model(client.upload(weights[0]).id, library)
    assert [problem.param for problem in refused.value.errors] == ["config"]


def test_validate_tells_what_was_chosen_and_what_is_remarkable(run: Run, job_file: Path) -> None:
    shown = run("validate", job_file, "--set", "student={architecture: vit, patch_size: 2}").stdout
    assert "recipe.schedule" in shown
    assert "a small vision transformer" in shown
    assert "recipe.batch_size is 128, and there are 32 samples" in shown
    assert "torch included" in shown
