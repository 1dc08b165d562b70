"""Publishes the files of a trainer: uploads them, then writes their row, under the lease's token.

Keys contain the attempt, so an attempt that has lost its lease can only leave objects in its own folder.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from app.core.errors import Unavailable
from app.jobs import publishing, reporting
from app.jobs.leases import LeaseLost, StoredFile
from app.recipe.students.model import DESCRIPTIONS, ModelConfig
from worker.protocol import CheckpointSaved, Finished
from worker.supervisor.access import Access
from worker.supervisor.staging import file_within, files_of, folder_within, safe_place

BINARY = "application/octet-stream"

logger = logging.getLogger(__name__)


class Publisher:
    """Publishes checkpoints and the bundle of one attempt, which are below `folder`."""

    def __init__(self, access: Access, folder: Path) -> None:
        self._access, self._folder = access, folder
        lease = access.lease
        self._prefix = f"projects/{lease.project_id}/jobs/{lease.job_id}/a{lease.attempt}"
        self._saved: dict[int, Path] = {}
        self._superseded: list[str] = []
        self._more = asyncio.Event()

    def offer(self, saved: CheckpointSaved) -> None:
        """Offer a complete checkpoint for upload. It is moved aside, since the trainer removes its older ones."""
        target = self._folder / "saved" / f"step-{saved.step}"
        target.parent.mkdir(exist_ok=True)
        try:
            folder_within(self._folder, saved.path).rename(target)
        except FileNotFoundError:
            return  # already removed: newer ones have been announced
        self._saved[saved.step] = target
        self._more.set()

    async def publish_checkpoints(self) -> NoReturn:
        """Publish offered checkpoints until cancelled, while training continues."""
        while True:
            await self._more.wait()
            self._more.clear()
            await self.publish_checkpoint()

    async def publish_checkpoint(self) -> None:
        """Publish the newest checkpoint. Older ones that wait with it are superseded."""
        step = max(self._saved, default=-1)
        if step < 0:
            return
        paths = await asyncio.to_thread(files_of, self._saved[step])
        files = [await self._upload(path, f"checkpoints/step-{step}/{path.name}", path.name) for path in paths]
        self._superseded += await self._access.write(partial(publishing.publish_checkpoint, step=step, files=files))
        await self._remove_up_to(step)
        await self._delete_superseded()

    async def salvage(self) -> None:
        """Publish the newest checkpoint if that is possible, at the end of an attempt that failed or was stopped."""
        try:
            await self._delete_superseded()  # the end may have come before the deletion
            await self.publish_checkpoint()
        except LeaseLost:
            raise
        except Exception:
            logger.warning("%s: the last checkpoint could not be saved", self._access.lease.job_id, exc_info=True)

    async def publish_bundle(self, finished: Finished) -> None:
        """Upload all artifacts, then publish them, and the model if one was trained, and end the job, in one
        transaction."""
        await self._access.write(partial(reporting.begin_phase, phase="publishing"))
        paths = {safe_place(item.name): file_within(self._folder, item.path) for item in finished.artifacts}
        config, report = await asyncio.to_thread(_describe, paths)
        artifacts = [
            await self._upload(paths[item.name], f"artifacts/{item.name}", item.name, item.media_type)
            for item in finished.artifacts
        ]
        made = {"config": config, "parameters": report["student"]["parameters"], "report": report}
        await self._access.write(partial(publishing.succeed, artifacts=artifacts, **made))

    async def _upload(self, path: Path, key: str, name: str, media_type: str = BINARY) -> StoredFile:
        upload = partial(self._access.store.upload, path, f"{self._prefix}/{key}")
        stored = await self._access.patiently(upload)
        return StoredFile(name, stored.key, stored.size, stored.sha256, media_type)

    async def _remove_up_to(self, step: int) -> None:
        for done in [saved for saved in self._saved if saved <= step]:
            await asyncio.to_thread(shutil.rmtree, self._saved.pop(done), ignore_errors=True)

    async def _delete_superseded(self) -> None:
        """Delete the objects of superseded checkpoints, except while the store can't be reached."""
        try:
            await self._access.store.delete(self._superseded)
            self._superseded = []
        except Unavailable:
            logger.warning("%s: superseded checkpoints stay in the store", self._access.lease.job_id, exc_info=True)


def _describe(artifacts: dict[str, Path]) -> tuple[ModelConfig | None, dict[str, Any]]:
    """The description of the model, none if there is no model, and the `report.json` of the bundle."""
    name = next((name for name in DESCRIPTIONS if name in artifacts), None)
    config = ModelConfig.model_validate_json(artifacts[name].read_bytes()) if name is not None else None
    report: dict[str, Any] = json.loads(artifacts["report.json"].read_bytes())
    return config, report
