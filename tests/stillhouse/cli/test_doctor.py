"""The doctor tells the truth about this machine, and changes nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.core import migrate
from stillhouse.cli import doctor
from stillhouse.cli.main import app

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was set up."""
    for name in ("URL", "API_KEY", "DATABASE_URL", "STORE_URL", "BROKER_URL"):
        monkeypatch.delenv(f"STILLHOUSE_{name}", raising=False)
    monkeypatch.setenv("STILLHOUSE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def examined() -> tuple[int, dict[str, dict[str, str]]]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    return result.exit_code, {check["name"]: check for check in json.loads(result.stdout)["data"]}


def test_a_bare_machine_lacks_nothing_that_the_service_needs(machine: Path) -> None:
    code, checks = examined()
    assert code == 0
    assert checks["torch"]["state"] == "ok"
    assert checks["database"]["state"] == "missing"
    assert checks["broker"]["state"] == "missing"
    assert checks["service"]["state"] == "missing"
    assert not (machine / "stillhouse.db").exists()


def test_an_old_schema_is_broken_until_it_is_migrated(machine: Path) -> None:
    url = f"sqlite+aiosqlite:///{machine / 'stillhouse.db'}"
    migrate.upgrade(url)
    migrate.downgrade(url, "base")
    code, checks = examined()
    assert code == 1
    assert "stillhouse migrate" in checks["database"]["means"]
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    assert examined()[1]["database"]["state"] == "ok"


def test_what_cannot_be_reached_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_DATABASE_URL", "postgresql+psycopg://user:pass-word@127.0.0.1:1/none")
    monkeypatch.setenv("STILLHOUSE_BROKER_URL", "redis://127.0.0.1:1/0")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "pass-word" not in result.stdout
    _, checks = examined()
    assert checks["database"]["state"] == "broken"
    assert checks["broker"]["state"] == "broken"


def test_wrong_settings_are_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_LEASE_SECONDS", "soon")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert "lease_seconds" in result.stderr


@pytest.mark.parametrize(
    ("gpu", "triton", "says"),
    [
        (True, True, "run in Triton"),
        (True, False, "run in plain PyTorch: it is not installed"),
        (False, True, "run in plain PyTorch: Triton needs a CUDA GPU"),
        (False, False, "run in plain PyTorch: Triton needs a CUDA GPU"),
    ],
)
def test_which_kernels_run_is_told(gpu: bool, triton: bool, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.11", "triton": "3.6" if triton else None}
    monkeypatch.setattr(doctor, "_version", versions.get)
    checks = {check.name: check for check in doctor.accelerator(["one, 80 GB"] if gpu else [])}
    assert says in checks["triton"].means
    assert (checks["triton"].state == "ok") == triton
    assert (checks["gpu"].state == "ok") == gpu


def test_a_torch_for_cpus_does_not_use_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", {"torch": "2.11+cpu", "triton": "3.6"}.get)
    gpu, triton = doctor.accelerator(["one, 80 GB"])
    assert (gpu.state, "built for CPUs" in gpu.means) == ("missing", True)
    assert "plain PyTorch" in triton.means


def test_every_library_of_the_worker_is_looked_for_and_what_it_is_for_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=;]", line)[0] for line in project["optional-dependencies"]["worker"]}
    assert set(doctor.worker_libraries()) == wanted == set(doctor.LIBRARIES)
    assert {check.name: check.state for check in doctor.libraries()} == dict.fromkeys(wanted, "ok")


def test_a_missing_library_is_named_with_what_that_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "pillow" else "1")
    [missing] = [check for check in doctor.libraries() if check.state == "missing"]
    assert (missing.name, missing.means) == ("pillow", "jobs fail on images: pip install 'stillhouse[worker]'")


def test_no_library_is_imported_for_it() -> None:
    code = "import sys; from stillhouse.cli import doctor; doctor.examine(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "onnxruntime", "pyarrow"} & set(loaded)
