"""Working folders of a worker: creation, staging from the store, checks, and clean-up.

Everything that a worker process writes is in one folder, which it keeps locked. So the next worker on the
machine can recognise the folder of a killed one, independently of process ids and names.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from filelock import FileLock, Timeout

from app.core.settings import Settings
from app.core.store import Damaged, MissingObject, Store
from app.jobs.leases import Lease, StoredFile
from app.recipe.job import JobSpec
from worker.convert import CONVERTER, ORDER, SOURCES, Unconvertible, convert
from worker.errors import unusable_model
from worker.fetch import fetch
from worker.fetch.model_cache import FetchCache
from worker.protocol import Assignment, CachePlace, InputSource

LOCK, OWNER = "lock", "owner"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class UnsafePath(Exception):
    """A path that leads out of its folder, through a link, or to something other than a regular file."""


class BadCheckpoint(Exception):
    """The checkpoint to resume from is missing or damaged in the store."""


class Scratch:
    """This process's folder under `parent`. Opening one removes the folders of processes that are dead.

    `owner` is the name of the process in leases; `dead` are the names of those whose folders were removed.
    """

    def __init__(self, parent: Path, owner: str = "") -> None:
        parent.mkdir(parents=True, exist_ok=True)
        parent = parent.resolve()
        with FileLock(
            parent / LOCK, fallback_to_soft=False
        ):  # a folder that is created but not locked yet must not be swept
            swept = [_sweep(folder) for folder in parent.glob("worker-*")]
            self.dead = [name for name in swept if name]
            self.path = Path(tempfile.mkdtemp(prefix="worker-", dir=parent))
            self._lock = FileLock(self.path / LOCK, thread_local=False, fallback_to_soft=False)
            self._lock.acquire()
            (self.path / OWNER).write_text(owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()

    def folder(self, *names: str) -> Path:
        """Create an empty folder; an existing one is removed first."""
        path = self.path.joinpath(*names)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def remove(self, folder: Path) -> None:
        """Remove a folder with its contents, and its parents if they are then empty."""
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            while (folder := folder.parent) != self.path:
                folder.rmdir()


def _sweep(folder: Path) -> str:
    """Remove a process's folder if the process is dead; returns its name, or nothing if it lives or had none yet."""
    owner = ""
    try:
        with FileLock(folder / LOCK, timeout=0.0, fallback_to_soft=False):
            owner = (folder / OWNER).read_text(errors="replace")
    except Timeout:
        return ""
    except OSError:
        pass  # its owner died before it wrote its name
    shutil.rmtree(folder, ignore_errors=True)
    return owner


@dataclass(frozen=True)
class Sources:
    """Sources of inputs."""

    store: Store
    settings: Settings
    cache: FetchCache
    """Cache of models that were fetched or converted for earlier jobs."""


async def stage(
    sources: Sources,
    lease: Lease,
    inputs: dict[str, list[StoredFile]],
    folder: Path,
    teacher_cache: CachePlace | None = None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Fetch and verify the inputs and the checkpoint to resume from, and write `assignment.json`; `names` are those of
    the service's models, by id.

    Raises: `BadCheckpoint`; `UserError` for a model that can't be fetched or converted; `Unavailable`,
    `MissingObject` or `Damaged` from the store; `ConversionFailed`; `OSError` when the disk is full.
    """
    staged: dict[str, str] = {}
    params = {reference: param for param, reference in lease.spec.references.items()}
    for number, (reference, files) in enumerate(sorted(inputs.items())):
        target = f"inputs/{number}"
        staged[reference] = await _stage_input(sources, reference, files, folder, target, params.get(reference))
    staged |= await _stage_models_from_outside(sources, lease.spec, folder)
    if lease.checkpoint is not None:
        await _fetch_checkpoint(sources.store, lease.checkpoint.files, folder / "resume")
    resume = "resume" if lease.checkpoint else None
    rendezvous = sources.settings.worker_rendezvous or None
    assignment = Assignment(
        spec=lease.spec,
        inputs=staged,
        sources=_sources(inputs, names or {}),
        resume=resume,
        rendezvous=rendezvous,
        teacher_cache=teacher_cache,
    )
    await asyncio.to_thread((folder / "assignment.json").write_text, assignment.model_dump_json())


def _sources(inputs: Mapping[str, list[StoredFile]], names: Mapping[str, str]) -> dict[str, InputSource]:
    models = {reference: InputSource(name=name) for reference, name in names.items()}
    data = {key: files[0] for key, files in inputs.items() if not key.startswith("model_")}
    return models | {key: InputSource(name=file.name, sha256=file.sha256) for key, file in data.items()}


async def _fetch_checkpoint(store: Store, files: list[StoredFile], folder: Path) -> None:
    try:
        await _fetch(store, files, folder)
    except (MissingObject, Damaged) as error:
        raise BadCheckpoint from error


async def _stage_input(
    sources: Sources, reference: str, files: list[StoredFile], folder: Path, target: str, param: str | None
) -> str:
    """Stage a model as a folder, or a data file under a neutral name; returns its path."""
    if reference.startswith("model_"):
        if any(file.name == ORDER for file in files):
            await _stage_converted(sources, files, folder / target, param)
        else:
            await _fetch(sources.store, files, folder / target)
        return target
    path = f"{target}/data"
    (file,) = files
    await sources.store.download(file.key, folder / path, sha256=file.sha256, size=file.size)
    return path


async def _stage_models_from_outside(sources: Sources, spec: JobSpec, folder: Path) -> dict[str, str]:
    """Stage the models from outside; returns the folder of each. References to the same model share one."""
    staged: dict[str, str] = {}
    for index, (path, origin) in enumerate(spec.origins.items()):
        if origin.model is None and origin.reference not in staged:
            staged[origin.reference] = f"inputs/outside{index}"
            target = folder / staged[origin.reference]
            shutil.rmtree(target, ignore_errors=True)  # of an earlier try
            target.mkdir(parents=True)
            await fetch(origin, f"{path}.{origin.source}", sources.settings, sources.cache, target)
    return staged


async def _stage_converted(sources: Sources, files: list[StoredFile], target: Path, param: str | None) -> None:
    """Stage a model whose weights must be converted."""

    async def make(target: Path) -> None:
        await _fetch(sources.store, files, target)
        try:
            await convert(target)
        except Unconvertible as error:
            raise unusable_model(f"can't be converted: {error}", param or "") from error
        for name in (ORDER, *SOURCES):
            (target / name).unlink(missing_ok=True)

    content = sorted((file.name, file.sha256) for file in files)
    await sources.cache.place(hashlib.sha256(repr((CONVERTER, content)).encode()).hexdigest(), target, make)


async def _fetch(store: Store, files: list[StoredFile], folder: Path) -> None:
    for file in files:
        await store.download(file.key, folder / safe_place(file.name), sha256=file.sha256, size=file.size)


def safe_name(name: str) -> str:
    """The name, if it is exactly one component of a path; raises `UnsafePath`."""
    if not _NAME.fullmatch(name):
        raise UnsafePath(f"{name!r} is not a plain file name")
    return name


def safe_place(name: str) -> str:
    """The name, if it is a file in a folder, or in a direct subfolder; raises `UnsafePath`."""
    for step in name.split("/", maxsplit=1):
        safe_name(step)
    return name


def file_within(folder: Path, relative: str) -> Path:
    """A regular file below `folder`, without links in its path; raises `UnsafePath`."""
    path = _within(folder, relative)
    if not path.is_file():
        raise UnsafePath(f"{relative!r} is not a regular file")
    return path


def folder_within(folder: Path, relative: str) -> Path:
    """A folder below `folder`, without links in its path; raises `UnsafePath`, or `FileNotFoundError`."""
    path = _within(folder, relative)
    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_dir():
        raise UnsafePath(f"{relative!r} is not a folder")
    return path


def files_of(folder: Path) -> list[Path]:
    """The files of a flat folder, by name; raises `UnsafePath` for anything else in it."""
    return [file_within(folder, safe_name(path.name)) for path in sorted(folder.iterdir())]


def _within(folder: Path, relative: str) -> Path:
    root = folder.resolve()
    path = root / relative
    if path.resolve() != path or root not in path.parents:
        raise UnsafePath(f"{relative!r} is not in the attempt's folder")
    return path


def try_lock(path: Path) -> BinaryIO | None:
    """Take an exclusive lock that lasts until the file, and every copy inherited by a child, is closed; or none.

    Not filelock's, which on release also unlocks the copies that children have inherited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
