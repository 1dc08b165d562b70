"""Checks what this machine supports and what is missing, with the consequences."""

from __future__ import annotations

import asyncio
import platform
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text
from sqlalchemy import URL, make_url

from app.core.database import Database
from app.core.dispatch import BrokerUnavailable, make_dispatcher
from app.core.errors import Unavailable
from app.core.nvml import list_gpus
from app.core.settings import Settings
from app.core.store import Store
from stillhouse import Client, ClientError, connection
from stillhouse.cli import schema, views

LITTLE_DISK_BYTES = 5 << 30
LIBRARIES = {
    "torch": "jobs can be accepted here but not run",
    "transformers": "jobs with networks of the Transformers library fail",
    "tokenizers": "jobs with texts fail",
    "pyarrow": "jobs fail on Parquet files and saved data sets",
    "pillow": "jobs fail on images",
    "kornia": "jobs that augment images fail",
    "jinja2": "jobs with chats fail",
    "huggingface-hub": "teachers can't be fetched from a hub",
    "onnx": "models can't be exported to ONNX",
    "onnxscript": "models can't be exported to ONNX",
    "onnxruntime": "exported ONNX files can't be verified, so jobs that export them fail",
    "matplotlib": "jobs fail at the end: curves can't be plotted",
}
"""Libraries of the worker, and the consequence of each one missing."""
INSTALL = "pip install 'stillhouse[worker]'"


class Check(BaseModel):
    """Result of one check."""

    name: str
    state: Literal["ok", "missing", "broken"]
    """The service works without a `missing` part, but not with a `broken` one."""
    found: str
    means: str = ""


def examine() -> list[Check]:
    """Run all checks. Nothing is changed, and no check raises; libraries are located, not imported."""
    settings = Settings()
    with ThreadPoolExecutor() as threads:
        gpus, service = threads.submit(_gpus), threads.submit(_service)
        services = asyncio.run(_services(settings))
        return [
            Check(name="python", state="ok", found=platform.python_version()),
            *libraries(),
            *accelerator(gpus.result()),
            *services,
            _disk(settings),
            service.result(),
        ]


def libraries() -> Iterator[Check]:
    """Every library that the worker needs."""
    for name in worker_libraries():
        found = _version(name)
        means = "" if found else f"{LIBRARIES.get(name, 'some jobs fail')}: {INSTALL}"
        yield Check(name=name, state="ok" if found else "missing", found=found or "none", means=means)


def worker_libraries() -> list[str]:
    """Names in the extra `worker` of this project, the most informative first."""
    wanted = [line.partition(";") for line in metadata.requires("stillhouse") or ()]
    extra = re.compile(r"""extra\s*==\s*['"]worker['"]""")
    names = [re.split(r"[^A-Za-z0-9._-]", spec)[0].lower() for spec, _, marker in wanted if extra.search(marker)]
    order = list(LIBRARIES)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def accelerator(gpus: list[str]) -> Iterator[Check]:
    """Checks of the GPUs, and of the implementation of the kernels used here."""
    torch, triton = _version("torch"), _version("triton")
    usable = bool(gpus) and torch is not None and not torch.endswith("+cpu")
    means = "training runs on the CPU; jobs for the queue `gpu` wait for another machine"
    if gpus and not usable:
        means = "torch is built for CPUs, so training runs there: install a build of torch for CUDA"
    found = ", ".join(gpus) or "none"
    yield Check(name="gpu", state="ok" if usable else "missing", found=found, means="" if usable else means)
    yield Check(
        name="triton",
        state="ok" if triton else "missing",
        found=triton or "none",
        means=_kernels(usable, triton is not None),
    )


def _kernels(gpu: bool, triton: bool) -> str:
    """Implementation of the kernels used here."""
    if gpu and triton:
        return "losses over logits run in Triton"
    why = "it is not installed: pip install 'stillhouse[gpu]'" if gpu else "Triton needs a CUDA GPU"
    return f"losses over logits run in plain PyTorch: {why}"


def _gpus() -> list[str]:
    """Names and memory of NVIDIA GPUs."""
    return [f"{gpu.name}, {gpu.memory_bytes >> 20} MiB" for gpu in list_gpus()]


async def _services(settings: Settings) -> list[Check]:
    return list(await asyncio.gather(_database(settings), _store(settings), _broker(settings)))


async def _database(settings: Settings) -> Check:
    url = settings.resolved_database_url
    shown = make_url(url).render_as_string(hide_password=True)
    if not _exists(make_url(url)):  # opening it would create it
        means = "it is created by `stillhouse up` or `stillhouse migrate`"
        return Check(name="database", state="missing", found=f"{shown}: does not exist yet", means=means)
    database = Database.from_settings(settings, 1)
    try:
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
        return Check(
            name="broker", state="missing", found="none set", means="workers poll the database, which is sufficient"
        )
    dispatcher = make_dispatcher(settings)
    try:
        await dispatcher.check()
    except BrokerUnavailable as error:
        return Check(
            name="broker", state="broken", found=str(error), means="Celery workers are notified of jobs late or never"
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


def _exists(url: URL) -> bool:
    """Whether the database exists; only the file of SQLite can be missing."""
    return url.get_backend_name() != "sqlite" or (bool(url.database) and Path(str(url.database)).exists())


def view(checks: list[Check]) -> Table:
    """The checks as a table."""
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    rows = views.table("", "", "found", "consequence")
    for check in checks:
        rows.add_row(check.name, Text(check.state, style=colours[check.state]), Text(check.found), Text(check.means))
    return rows
