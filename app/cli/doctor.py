"""What this machine can do, what it lacks, and what that means."""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from app.cli import connection, schema, views
from app.cli.client import Client
from app.cli.errors import ClientError
from app.core.database import Database
from app.core.dispatch import BrokerUnavailable, make_dispatcher
from app.core.errors import Unavailable
from app.core.settings import Settings
from app.core.store import Store

LITTLE_DISK_BYTES = 5 << 30
TRAINING = """
import json, importlib.util
facts = {}
try:
    import torch
    facts["torch"] = torch.__version__
    facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        facts["gpus"] = [{"name": device.name, "memory": device.total_memory} for device in devices]
except ImportError as error:
    facts["missing"] = str(error)
for name in ("triton", "onnx", "onnxruntime", "onnxscript", "matplotlib"):
    if importlib.util.find_spec(name):
        facts[name] = __import__("importlib.metadata").metadata.version(name)
print(json.dumps(facts))
"""


class Check(BaseModel):
    """One thing looked at."""

    name: str
    state: Literal["ok", "missing", "broken"]
    """`missing` is something that the service can do without; `broken` is not."""
    found: str
    means: str = ""


def examine() -> list[Check]:
    """Look at everything. Nothing is changed, and no check raises."""
    settings = Settings()
    return [
        Check(name="python", state="ok", found=platform.python_version()),
        *_training(),
        *asyncio.run(_services(settings)),
        _disk(settings),
        _service(),
    ]


def _training() -> Iterator[Check]:
    """Ask a process of its own about torch, so that this one stays small."""
    facts = _probe()
    if "torch" not in facts:
        why = "jobs can be accepted here but not run: pip install 'stillhouse[worker]'"
        yield Check(name="torch", state="missing", found=str(facts.get("missing")), means=why)
        return
    yield Check(name="torch", state="ok", found=f"{facts['torch']}, {facts['threads']} threads")
    gpus = ", ".join(f"{gpu['name']} ({views.size(gpu['memory'])})" for gpu in facts.get("gpus", []))
    means = "" if gpus else "training runs on the CPU; jobs for the queue `gpu` wait for another machine"
    yield Check(name="gpu", state="ok" if gpus else "missing", found=gpus or "none", means=means)
    yield _optional("triton", facts, _kernels(bool(gpus), "triton" in facts))
    for name in ("onnx", "onnxscript", "onnxruntime"):
        yield _optional(name, facts, "" if name in facts else "models can't be exported to ONNX")
    yield _optional("matplotlib", facts, "" if "matplotlib" in facts else "jobs fail at the end: curves can't be drawn")


def _kernels(gpu: bool, triton: bool) -> str:
    """Which form of the kernels runs here."""
    if gpu and triton:
        return "losses over logits run in Triton"
    why = "it is not installed: pip install 'stillhouse[gpu]'" if gpu else "Triton needs a CUDA GPU"
    return f"losses over logits run in plain PyTorch: {why}"


def _optional(name: str, facts: dict[str, Any], means: str) -> Check:
    return Check(name=name, state="ok" if name in facts else "missing", found=facts.get(name, "none"), means=means)


def _probe() -> dict[str, Any]:
    command = [sys.executable, "-c", TRAINING]
    result = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - all of it stands here
    if result.returncode:
        last_line = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {"missing": f"importing it failed: {last_line}"}
    facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return facts


async def _services(settings: Settings) -> list[Check]:
    return [await _database(settings), await _store(settings), await _broker(settings)]


async def _database(settings: Settings) -> Check:
    url = settings.resolved_database_url
    database = Database(url, 1)
    shown = database.url.render_as_string(hide_password=True)
    try:
        if database.is_sqlite and not _exists(database):
            means = "it is made by `stillhouse up` or `stillhouse migrate`"
            return Check(name="database", state="missing", found=f"{shown}: not there yet", means=means)
        await database.now()
        found = await asyncio.to_thread(schema.read, url)
    except Exception as error:
        why = "the service can't start without its database"
        return Check(name="database", state="broken", found=f"{shown}: {_reason(error)}", means=why)
    finally:
        await database.close()
    if found.is_old:
        means = "run `stillhouse migrate`"
        at = f"{shown}: at {found.current}, not {found.newest}"
        return Check(name="database", state="broken", found=at, means=means)
    return Check(name="database", state="ok", found=f"{shown}: reachable, migrated")


async def _store(settings: Settings) -> Check:
    shown = settings.resolved_store_url
    try:
        await Store.from_settings(settings).check()
    except (Unavailable, ValueError, OSError) as error:
        why = "nothing can be uploaded or published without the store"
        return Check(name="store", state="broken", found=f"{shown}: {_reason(error)}", means=why)
    return Check(name="store", state="ok", found=f"{shown}: reachable")


async def _broker(settings: Settings) -> Check:
    if settings.embedded:
        return Check(name="broker", state="missing", found="none set", means="workers poll the database, which is fine")
    dispatcher = make_dispatcher(settings)
    try:
        await dispatcher.check()
    except BrokerUnavailable as error:
        return Check(
            name="broker", state="broken", found=str(error), means="Celery workers learn of jobs late or never"
        )
    finally:
        await dispatcher.close()
    return Check(name="broker", state="ok", found="reachable")


def _disk(settings: Settings) -> Check:
    folder = settings.data_dir.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    little = free < LITTLE_DISK_BYTES
    means = "large uploads and checkpoints may not fit" if little else ""
    return Check(name="disk", state="missing" if little else "ok", found=f"{views.size(free)} free", means=means)


def _service() -> Check:
    try:
        known = connection.find()
        with Client(known.url, known.key, retries=0) as client:
            client.health()
    except ClientError as error:
        return Check(name="service", state="missing", found=str(error), means=error.hint or "it does not work")
    return Check(name="service", state="ok", found=f"{known.url} answers")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _exists(database: Database) -> bool:
    return bool(database.url.database) and Path(str(database.url.database)).exists()


def view(checks: list[Check]) -> Table:
    """The checks as a table."""
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    rows = views.table("", "", "found", "what that means")
    for check in checks:
        rows.add_row(check.name, Text(check.state, style=colours[check.state]), Text(check.found), Text(check.means))
    return rows
