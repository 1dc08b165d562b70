"""Converts files written by torch.save to safetensors, in a sandboxed process.

Such a file is a pickle, which can execute code. It is read only here: by torch's restricted reader, in a
process without network, credentials, or files other than its own folder (`worker.convert.confinement`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SOURCES, ORDER = ("weights.pt", "weights.safetensors"), "convert.json"
"""Files of a model that must be converted: weights of either format; the order is
`app.recipe.teachers.key_map.Conversion`."""
CONVERTER = 1
"""Version, incremented when the same file would be converted differently, so that older cache entries are not used."""
REFUSED = 3
"""Exit status of a process that prints why the file can't be converted."""
MAX_SECONDS = 600.0
MAX_MESSAGE_BYTES = 8192
PASSED = ("PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")


class Unconvertible(Exception):
    """The file does not have the weights of the architecture; the text is the reason, for the model's owner."""


class ConversionFailed(Exception):
    """The process could not be run, or died of a cause unrelated to the file."""


async def convert(folder: Path) -> None:
    """Write `model.safetensors` into `folder`, from its `config.json`, `convert.json` and one of `SOURCES`.

    Raises: `Unconvertible`, `ConversionFailed`.
    """
    status, message = await _run(folder)
    if status == REFUSED:
        raise Unconvertible(message)
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        raise Unconvertible("reading the file takes more time or memory than weights of its size need")
    if status:
        raise ConversionFailed(f"the process ended with status {status}")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Only the paths of the worker's modules; and one thread, so that the process needs no others."""
    passed = {name: environ[name] for name in PASSED if name in environ}
    return passed | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


async def _run(folder: Path) -> tuple[int, str]:
    command = (sys.executable, "-P", "-s", "-m", "worker.convert", str(folder), "--parent", str(os.getpid()))
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=PIPE, cwd=folder, env=_environment(os.environ), start_new_session=True
        )
    except OSError as error:
        raise ConversionFailed(str(error)) from error
    try:
        async with asyncio.timeout(MAX_SECONDS):
            output = await _output(process)
            return await process.wait(), output
    except TimeoutError:
        return -signal.SIGKILL, ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _output(process: Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.read(MAX_MESSAGE_BYTES)).decode(errors="replace").strip()
