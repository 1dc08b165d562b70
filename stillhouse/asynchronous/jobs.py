"""The client's part for jobs."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from stillhouse import local_data
from stillhouse.asynchronous import transfer
from stillhouse.asynchronous.event_stream import AsyncEventStream, events_after
from stillhouse.asynchronous.files import AsyncFilesApi
from stillhouse.errors import TransferError
from stillhouse.local_files import Progress, no_progress
from stillhouse.objects import Artifact, Checkpoint, Event, Job, Recommendation, Result, Series, Validation
from stillhouse.requests import Document, idempotency, resource

HERE = Path()


class AsyncJobsApi(AsyncFilesApi):
    """Jobs. Every method raises `ServiceError` (404 for an unknown id) and `Unreachable`, and what it names."""

    async def upload_data(
        self, spec: Document, *, folder: Path = HERE, notify: local_data.Notify = local_data.ignore
    ) -> dict[str, Any]:
        """Upload the data that a job names by paths, as `submit` and `validate` do.

        A folder with one folder of images per class, or a data set saved by Hugging Face `datasets`, is packed first.

        Args:
            spec: The job.
            folder: Folder that the paths are relative to.
            notify: Called with a line for people about each folder that was packed.

        Returns:
            The job, with ids of uploaded files in place of paths.

        Raises:
            BadRequest: A path does not exist, or a folder can't be packed.
            TransferError: An upload was interrupted.
        """
        with tempfile.TemporaryDirectory() as scratch:
            found = await asyncio.to_thread(local_data.find, spec, folder, Path(scratch), notify)
            ids = {}
            for field, file in found.files.items():
                ids[field] = (await self.upload(file)).id
        return found.replaced(ids)

    async def submit(self, spec: Document, *, folder: Path = HERE, idempotency_key: str | None = None) -> Job:
        """Submit a job; a repeated request creates only one job.

        Args:
            spec: The job; data that it names by a path is uploaded first, unless the service already has it.
            folder: Folder that the paths are relative to.
            idempotency_key: Name of this request, up to 255 printable characters without spaces, by which a later
                call with the same job returns the same job; None: a new one.

        Returns:
            The job, queued.

        Raises:
            BadRequest: A path does not exist, or a folder can't be packed.
            TransferError: An upload was interrupted.
            ServiceError: The job is not valid (422); `errors` lists every invalid field.
        """
        body = await self.upload_data(spec, folder=folder)
        return await self._one(Job, "POST", "/v1/jobs", json=body, headers=idempotency(idempotency_key))

    async def diagnose(
        self, model_id: str, wanted: Document, *, folder: Path = HERE, idempotency_key: str | None = None
    ) -> Job:
        """Run diagnostics of a stored model, as a job that trains nothing; its artifacts are the report and its
        pictures.

        Args:
            model_id: The model.
            wanted: `data` and `evaluation` as in a job, the latter with its `diagnostics`; optionally `teachers`,
                `task`, `name`, `labels`, `resources` and `seed`. Data is uploaded as by `submit`.
            folder: Folder that the paths are relative to.
            idempotency_key: Name of this request, as of `submit`.

        Returns:
            The job, queued.

        Raises:
            BadRequest: A path does not exist, or a folder can't be packed.
            TransferError: An upload was interrupted.
            ServiceError: The job is not valid (422); `errors` lists every invalid field.
        """
        body = await self.upload_data(wanted, folder=folder)
        address = resource("models", model_id, "diagnostics")
        return await self._one(Job, "POST", address, json=body, headers=idempotency(idempotency_key))

    async def validate(self, spec: Document, *, folder: Path = HERE) -> Validation:
        """Validate a job without creating it; data is uploaded as by `submit`.

        Args:
            spec: The job.
            folder: Folder that the paths are relative to.

        Returns:
            Every invalid field, or the job as it would be stored with an estimate of its memory and time.

        Raises:
            BadRequest: A path does not exist, or a folder can't be packed.
            TransferError: An upload was interrupted.
        """
        body = await self.upload_data(spec, folder=folder)
        return await self._one(Validation, "POST", "/v1/jobs/validate", json=body, repeatable=True)

    async def recommend(self, spec: Document, *, top: int = 3, folder: Path = HERE) -> Recommendation:
        """Recommend recipes for a job, learned from the project's past jobs; data is uploaded as by `submit`.

        Args:
            spec: The job, with a teacher and without `recipe`.
            top: Most recipes, up to 20.
            folder: Folder that the paths are relative to.

        Returns:
            The recipes, best first, and what they were learned from; defaults, with the reason, if there is too little
            to learn from.

        Raises:
            BadRequest: A path does not exist, or a folder can't be packed.
            TransferError: An upload was interrupted.
            ServiceError: The job is not valid, or has a recipe (422); `errors` lists every invalid field.
        """
        body = await self.upload_data(spec, folder=folder)
        options = {"params": {"top": top}, "json": body, "repeatable": True}
        return await self._one(Recommendation, "POST", "/v1/recommendations", **options)

    def jobs(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        labels: Iterable[str] = (),
        limit: int | None = None,
    ) -> AsyncIterator[Job]:
        """List jobs, newest first; pages are requested as they are needed.

        Args:
            status: Only jobs in this status.
            name: Only jobs with this name.
            labels: Only jobs that have all of these labels, each as `key:value`.
            limit: Maximum number; None: all.

        Returns:
            An iterator, which raises `ServiceError` and `Unreachable`.
        """
        filters = {"status": status, "name": name, "label": list(labels)}
        return self._pages(Job, "/v1/jobs", filters, limit)

    async def job(self, job_id: str) -> Job:
        """The current state of a job."""
        return await self._one(Job, "GET", resource("jobs", job_id))

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job; the trainer of a running one is stopped first.

        Returns:
            The job, cancelling or cancelled.

        Raises:
            ServiceError: The job is already final (409).
        """
        return await self._one(Job, "POST", resource("jobs", job_id, "cancel"))

    async def pause(self, job_id: str) -> Job:
        """Pause a job after a checkpoint.

        Returns:
            The job, pausing or paused.

        Raises:
            ServiceError: The job is final or being cancelled (409).
        """
        return await self._one(Job, "POST", resource("jobs", job_id, "pause"))

    async def resume(self, job_id: str) -> Job:
        """Queue a paused job again; it resumes from its checkpoint.

        Returns:
            The job, queued.

        Raises:
            ServiceError: The job is not paused (409).
        """
        return await self._one(Job, "POST", resource("jobs", job_id, "resume"))

    async def clone(self, job_id: str, overrides: Document | None = None) -> Job:
        """Submit a copy of a job; a repeated request creates only one job.

        Args:
            job_id: The original.
            overrides: Top-level fields of its spec to replace; None: none, so that the clone repeats it.

        Returns:
            The clone, queued.

        Raises:
            ServiceError: The clone is not valid (422); `errors` lists every invalid field.
        """
        body = dict(overrides or {})
        return await self._one(Job, "POST", resource("jobs", job_id, "clone"), json=body, headers=idempotency())

    async def prioritise(self, job_id: str, priority: int) -> Job:
        """Change the priority (0 to 100) of a queued job; higher runs first.

        Returns:
            The job.

        Raises:
            ServiceError: The priority is out of range (422), or the job is not queued (409).
        """
        return await self._one(Job, "PATCH", resource("jobs", job_id), json={"priority": priority}, repeatable=True)

    async def result(self, job_id: str) -> Result:
        """The main metric of a job's student beside that of its teachers and of the same student without a teacher.

        Raises:
            ServiceError: The job has not succeeded (409).
        """
        return await self._one(Result, "GET", resource("jobs", job_id, "result"))

    async def delete_job(self, job_id: str) -> None:
        """Delete a job in a final state, with its history and files; its model is kept.

        Raises:
            ServiceError: The job is not final (409).
        """
        await self._transport.send("DELETE", resource("jobs", job_id))

    async def wait(self, job_id: str, *, timeout_seconds: float | None = None) -> Job:
        """Wait until a job is final, through restarts of the service.

        Args:
            job_id: The job.
            timeout_seconds: Longest time to wait; None: without a limit.

        Returns:
            The job, final, whether it succeeded or not.

        Raises:
            TimeoutError: The job is not final within `timeout_seconds`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        async for _ in self.watch(job_id, deadline=deadline):
            pass
        return await self.patient().job(job_id)

    async def watch(self, job_id: str, *, after: int = 0, deadline: float | None = None) -> AsyncIterator[Event]:
        """Live events of a job, each once, up to the final one.

        It continues after lost connections and restarts of the service.

        Args:
            job_id: The job.
            after: Number (`seq`) of the last event already seen.
            deadline: A time of `time.monotonic()`; None: without a limit.

        Yields:
            The events in order, without gaps.

        Raises:
            TimeoutError: The job is not final at the deadline.
            Unreachable: The service was unreachable for more than `outage_seconds`.
        """
        stream = AsyncEventStream(self._transport, job_id, after=after, deadline=deadline)
        try:
            while (event := await stream.next()) is not None:
                yield event
        finally:
            await stream.close()

    async def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Events of a job so far, from number `after` + 1 on."""
        return await events_after(self._transport, job_id, after)

    async def metrics(self, job_id: str, name: str | None = None, *, points: int | None = None) -> list[Series]:
        """Measured series of a job.

        Args:
            job_id: The job.
            name: Only this series, such as `train/loss`; None: all.
            points: Approximate number of points to which the service down-samples each series; None: its default.

        Returns:
            The series, by name.
        """
        return await self._list(Series, resource("jobs", job_id, "metrics"), name=name, points=points)

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Published training states of a job, newest first."""
        return await self._list(Checkpoint, resource("jobs", job_id, "checkpoints"))

    async def artifacts(self, job_id: str) -> list[Artifact]:
        """Published files of a job, by name."""
        return await self._list(Artifact, resource("jobs", job_id, "artifacts"))

    async def download(self, job_id: str, name: str, folder: Path, *, progress: Progress = no_progress) -> Path:
        """Download a file of a job and verify its sha256; an interrupted download is continued.

        Args:
            job_id: The job.
            name: Name of the artifact; a folder in it is created.
            folder: Folder to write to; it is created if it does not exist.
            progress: Called with the bytes received so far and the size of the file.

        Returns:
            Path of the file.

        Raises:
            TransferError: There is no such artifact, the download was interrupted, or the digest is wrong.
            BadRequest: The name would leave the folder.
        """
        item = next((item for item in await self.patient().artifacts(job_id) if item.name == name), None)
        if item is None:
            raise TransferError(f"job {job_id} has no artifact {name!r}")
        url = resource("jobs", job_id, "artifacts", item.name)
        return await transfer.download(self._transport, url, item, folder, progress=progress)
