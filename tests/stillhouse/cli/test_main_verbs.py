"""What the command line does with files, models, keys and ended jobs."""

from __future__ import annotations

import json
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse import Client, ServiceError
from stillhouse.cli.main import app
from tests.stillhouse.cli.command_lines import Run, submitted
from tests.stillhouse.conftest import LiveService, job_document


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
