"""Models of a Hugging Face hub, at one commit: from the mirror if it has them, else over the network.

The hub's own library fetches, in a separate process that can be killed at any time and has only the credentials of the
hub. It connects only to the address of the settings, whatever the hub's responses contain.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from app.core.errors import Unavailable
from app.core.settings import Settings
from worker.fetch.model_cache import files_in
from worker.fetch.refusal import Refused, choose

REFUSED, UNREACHED = 3, 4
"""Exit statuses of a process that prints why nothing can be fetched, or that the hub does not respond."""
MAX_MESSAGE_BYTES = 8192
PASSED = frozenset(
    {"PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"}
)


class Order(BaseModel):
    """Order for the process; sent on its stdin."""

    endpoint: str
    name: str
    revision: str
    token: str | None
    max_bytes: int
    folder: str


class HubUnavailable(Unavailable):
    """The hub does not respond; a retry may help."""

    def __init__(self) -> None:
        super().__init__("hub_unavailable", "the model hub can't be reached")


async def fetch(name: str, revision: str, settings: Settings, target: Path) -> None:
    """Write the files of a model into the folder `target`. Raises: `Refused`, `HubUnavailable`, `OSError`."""
    mirrored = settings.hub_mirror / name / revision if settings.hub_mirror else None
    if mirrored is not None and mirrored.is_dir():
        await asyncio.to_thread(_copy, mirrored, settings.max_teacher_bytes, target)
        return
    if not settings.hub_enabled:
        raise Refused(f"the mirror of the hub does not have {name} at {revision}")
    token = settings.hub_token.get_secret_value() if settings.hub_token else None
    order = Order(
        endpoint=settings.hub_endpoint,
        name=name,
        revision=revision,
        token=token,
        max_bytes=settings.max_teacher_bytes,
        folder=str(target),
    )
    status, message = await _run(order, target)
    if status == REFUSED:
        raise Refused(message)
    if status:
        raise HubUnavailable


def _copy(source: Path, max_bytes: int, target: Path) -> None:
    sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in files_in(source)}
    for name in choose(sizes, max_bytes):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)


async def _run(order: Order, home: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-s", "-m", "worker.fetch.download"),
        stdin=PIPE,
        stdout=PIPE,
        cwd=home,
        env=_environment(os.environ, home),
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate(order.model_dump_json().encode())
        return process.returncode or 0, output[:MAX_MESSAGE_BYTES].decode(errors="replace").strip()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _environment(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """Only the variables needed to reach the network; nothing is written outside the folder."""
    passed = {name: value for name, value in environ.items() if name in PASSED}
    switches = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_XET")
    own = {"HOME": str(home), "TMPDIR": str(home), "HF_HOME": str(home / ".hub")}
    return passed | own | dict.fromkeys(switches, "1")
