"""The Python client: every verb of the service, over HTTP alone.

with Client() as client:
    job = client.submit(spec)
    job = client.wait(job.id)
    for artifact in client.artifacts(job.id):
        client.download(job.id, artifact.name, folder)
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from stillhouse import connection, transfer
from stillhouse.errors import BadRequest, ClientError, FieldProblem, ServiceError, TransferError, Unreachable
from stillhouse.local_data import send_data
from stillhouse.objects import (
    Artifact,
    CatalogOption,
    Checkpoint,
    Event,
    File,
    Job,
    Key,
    Modules,
    Reply,
    Result,
    Series,
    StoredModel,
    Validation,
)
from stillhouse.transport import OUTAGE_SECONDS, Transport

__all__ = ["BadRequest", "Client", "ClientError", "FieldProblem", "ServiceError", "TransferError", "Unreachable"]

SILENCE_SECONDS = 45.0
"""Longest silence on a stream of events; the service sends a comment every 15 seconds."""
HERE = Path()
Document = Mapping[str, Any]
AnyReply = TypeVar("AnyReply", bound=Reply)


class Client:
    """Speaks to one service. Without arguments: STILLHOUSE_URL and STILLHOUSE_API_KEY, or what `stillhouse up` left.

    Requests that may be repeated are repeated after a lost connection, `retries` times; watching, uploads and downloads
    go on when the service is away for up to `outage_seconds`, as while it is restarted. Raises `ServiceError` when the
    service refuses, `Unreachable` when it does not answer.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        retries: int = 3,
        timeout_seconds: float = 30.0,
        outage_seconds: float = OUTAGE_SECONDS,
    ) -> None:
        found = connection.find(url, key)
        self.url = found.url
        self._transport = Transport(
            found, retries=retries, timeout_seconds=timeout_seconds, outage_seconds=outage_seconds
        )

    def patient(self, until: float | None = None) -> Self:
        """The same client, but every request that may be repeated is, until the service has been away for too long.

        `until` is a time of `time.monotonic()`, after which they are not either.
        """
        patient = copy(self)
        patient._transport = self._transport.patient(until)
        return patient

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # jobs

    def submit(self, spec: Document, *, folder: Path = HERE, idempotency_key: str | None = None) -> Job:
        """Make a job. However often the request must be repeated, it makes one job.

        Data that `spec` names by a path (relative to `folder`) is uploaded first, unless the service has it already; a
        folder with a folder of pictures for each class is packed for that. Raises `BadRequest` for what is not there.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        body = self._sent(spec, folder)
        return Job.model_validate(self._transport.json("POST", "/v1/jobs", json=body, headers=headers, repeatable=True))

    def validate(self, spec: Document, *, folder: Path = HERE) -> Validation:
        """Say what would become of a job, and everything that is wrong with it. Data is uploaded as by `submit`."""
        body = self._sent(spec, folder)
        return Validation.model_validate(self._transport.json("POST", "/v1/jobs/validate", json=body, repeatable=True))

    def _sent(self, spec: Document, folder: Path) -> dict[str, Any]:
        return send_data(lambda path: self.upload(path).id, spec, folder)

    def jobs(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        labels: Iterable[str] = (),
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first; `labels` are `key:value` and must all fit."""
        filters = {"status": status, "name": name, "label": list(labels)}
        return self._pages("/v1/jobs", Job, filters, limit)

    def job(self, job_id: str) -> Job:
        """A job as it stands now."""
        return Job.model_validate(self._transport.json("GET", _path("jobs", job_id)))

    def cancel(self, job_id: str) -> Job:
        """End a job; a running one first stops its trainer."""
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Halt a job after a checkpoint."""
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Put a paused job back into the queue; it goes on from its checkpoint."""
        return self._act(job_id, "resume")

    def clone(self, job_id: str, overrides: Document | None = None) -> Job:
        """Make a job like another one; `overrides` replaces top-level fields of its spec."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        path = _path("jobs", job_id, "clone")
        return Job.model_validate(
            self._transport.json("POST", path, json=dict(overrides or {}), headers=headers, repeatable=True)
        )

    def prioritise(self, job_id: str, priority: int) -> Job:
        """Change the priority (0 to 100) of a queued job."""
        return Job.model_validate(
            self._transport.json("PATCH", _path("jobs", job_id), json={"priority": priority}, repeatable=True)
        )

    def result(self, job_id: str) -> Result:
        """What a job that succeeded came to, beside its teachers and beside the same student without one."""
        return Result.model_validate(self._transport.json("GET", _path("jobs", job_id, "result")))

    def delete_job(self, job_id: str) -> None:
        """Delete a job that is final, with its history and files; the model that it made stays."""
        self._transport.send("DELETE", _path("jobs", job_id))

    def wait(self, job_id: str, *, timeout_seconds: float | None = None) -> Job:
        """Return the job once it is final. Raises `TimeoutError`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for _ in self.watch(job_id, deadline=deadline):
            pass
        return self.patient().job(job_id)

    def watch(self, job_id: str, *, after: int = 0, deadline: float | None = None) -> Iterator[Event]:
        """Events from number `after` + 1 on, as they happen, up to the final one, each once.

        It outlasts lost connections and restarts of the service. `deadline` is a time of `time.monotonic()`, after
        which `TimeoutError` is raised.
        """
        patient = self.patient(deadline)
        outage = patient._transport.outage()
        while not patient.job(job_id).is_final:
            seen = after
            try:
                for event in self._events_as_they_come(job_id, after, deadline):
                    if event.seq > after:
                        after = event.seq
                        outage.over()
                        yield event
                if after == seen:
                    raise httpx.RemoteProtocolError("its streams end at once")
            except httpx.ReadTimeout:
                pass  # it fell silent, or the deadline has come: whether the service answers, the next request shows
            except httpx.TransportError as error:
                outage.wait(self._transport.unreachable(error))
            except ServiceError as error:
                outage.wait(error)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is not final yet")
        yield from patient.events(job_id, after=after)

    def _events_as_they_come(self, job_id: str, after: int, deadline: float | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after else {})
        silence = SILENCE_SECONDS if deadline is None else max(0.001, min(SILENCE_SECONDS, deadline - time.monotonic()))
        with self._transport.stream(_path("jobs", job_id, "events"), headers, silence_seconds=silence) as response:
            data: list[str] = []
            for line in response.iter_lines():
                if line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif not line and data:
                    yield Event.model_validate_json("\n".join(data))
                    data = []

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Events so far, from number `after` + 1 on."""
        events: list[Event] = []
        more = True
        while more:
            seen = events[-1].seq if events else after
            page = self._transport.json("GET", _path("jobs", job_id, "events"), params={"after": seen})
            events += [Event.model_validate(item) for item in page["data"]]
            more = page["has_more"]
        return events

    def metrics(self, job_id: str, name: str | None = None, *, points: int | None = None) -> list[Series]:
        """Measured series, thinned by the service to `points` points each."""
        params = {"name": name, "points": points}
        page = self._transport.json("GET", _path("jobs", job_id, "metrics"), params=_given(params))
        return [Series.model_validate(item) for item in page["data"]]

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Published states of training."""
        page = self._transport.json("GET", _path("jobs", job_id, "checkpoints"))
        return [Checkpoint.model_validate(item) for item in page["data"]]

    def artifacts(self, job_id: str) -> list[Artifact]:
        """Published files of a job."""
        page = self._transport.json("GET", _path("jobs", job_id, "artifacts"))
        return [Artifact.model_validate(item) for item in page["data"]]

    def download(
        self, job_id: str, name: str, folder: Path, *, progress: transfer.Progress = transfer.no_progress
    ) -> Path:
        """Fetch one artifact into `folder` and verify its sha256; an earlier try that broke off is continued."""
        item = next((item for item in self.patient().artifacts(job_id) if item.name == name), None)
        if item is None:
            raise TransferError(f"job {job_id} has no artifact {name!r}")
        url = _path("jobs", job_id, "artifacts", item.name)
        return transfer.download(self._transport, url, item, folder, progress=progress)

    # files, models and the rest

    def upload(
        self,
        path: Path,
        *,
        resume: str | None = None,
        reuse: bool = True,
        progress: transfer.Progress = transfer.no_progress,
    ) -> File:
        """Send a file; one with the same name and content that is already there is used instead, unless told not to."""
        if reuse and resume is None:
            sha256 = transfer.sha256_of(path)
            for file in self.files(sha256=sha256):
                if file.name == path.name and file.sha256 == sha256:
                    return file
        return transfer.upload(self._transport, path, resume=resume, progress=progress)

    def files(self, *, sha256: str | None = None, limit: int | None = None) -> Iterator[File]:
        """Uploaded files, newest first."""
        return self._pages("/v1/files", File, {"sha256": sha256}, limit)

    def delete_file(self, file_id: str) -> None:
        """Remove a file that no live job uses."""
        self._transport.send("DELETE", _path("files", file_id))

    def models(self, *, limit: int | None = None) -> Iterator[StoredModel]:
        """Models, newest first."""
        return self._pages("/v1/models", StoredModel, {}, limit)

    def model(self, model_id: str) -> StoredModel:
        """A model, with its configuration, report and files."""
        return StoredModel.model_validate(self._transport.json("GET", _path("models", model_id)))

    def modules(self, model_id: str) -> Modules:
        """Paths of the modules within a model's network."""
        return Modules.model_validate(self._transport.json("GET", _path("models", model_id, "modules")))

    def register_model(
        self,
        file_id: str,
        config: Document,
        name: str | None = None,
        *,
        checkpoint_key: str | None = None,
        key_map: Document | str | None = None,
    ) -> StoredModel:
        """Make a model of uploaded weights (safetensors, or what torch.save wrote) and a description of them."""
        body = {"file": file_id, "config": config, "name": name, "checkpoint_key": checkpoint_key, "key_map": key_map}
        return StoredModel.model_validate(self._transport.json("POST", "/v1/models", json=_given(body)))

    def register_folder(
        self, files: Mapping[str, str], config: Document | None = None, name: str | None = None
    ) -> StoredModel:
        """Make a model of a folder in the Hugging Face layout: ids of uploaded files by their name in it."""
        body = _given({"files": dict(files), "config": config, "name": name})
        return StoredModel.model_validate(self._transport.json("POST", "/v1/models", json=body))

    def delete_model(self, model_id: str) -> None:
        """Remove a model that no live job uses."""
        self._transport.send("DELETE", _path("models", model_id))

    def download_model(
        self, model_id: str, name: str, folder: Path, *, progress: transfer.Progress = transfer.no_progress
    ) -> Path:
        """Fetch one file of a model's bundle into `folder` and verify its sha256."""
        item = next((item for item in self.patient().model(model_id).files if item.name == name), None)
        if item is None:
            raise TransferError(f"model {model_id} has no file {name!r}")
        url = _path("models", model_id, "files", item.name)
        return transfer.download(self._transport, url, item, folder, progress=progress)

    def catalog(self, group: str | None = None) -> list[CatalogOption]:
        """What can be asked for: losses, optimizers, schedules and students, with their schemas."""
        page = self._transport.json("GET", _path("catalog", *([group] if group else [])))
        return [CatalogOption.model_validate(item) for item in page["data"]]

    def api_keys(self) -> Iterator[Key]:
        """Keys of the project."""
        return self._pages("/v1/keys", Key, {}, None)

    def create_key(self, name: str, scopes: Iterable[str] = ()) -> Key:
        """Make a key; the answer is the only one that contains it."""
        body: dict[str, Any] = {"name": name} | ({"scopes": list(scopes)} if scopes else {})
        return Key.model_validate(self._transport.json("POST", "/v1/keys", json=body))

    def revoke_key(self, key_id: str) -> Key:
        """Make a key invalid for good."""
        return Key.model_validate(self._transport.json("DELETE", _path("keys", key_id)))

    def health(self) -> dict[str, Any]:
        """Whether the service can work, part by part."""
        answer: dict[str, Any] = self._transport.json("GET", "/healthz")
        return answer

    def version(self) -> dict[str, Any]:
        """Version of the service."""
        answer: dict[str, Any] = self._transport.json("GET", "/v1/version")
        return answer

    def _act(self, job_id: str, verb: str) -> Job:
        return Job.model_validate(self._transport.json("POST", _path("jobs", job_id, verb)))

    def _pages(
        self, path: str, kind: type[AnyReply], filters: dict[str, Any], limit: int | None, page_size: int = 100
    ) -> Iterator[AnyReply]:
        """Items of all pages, at most `limit`."""
        left, after = limit, None
        while left is None or left > 0:
            params = _given(filters | {"after": after, "limit": min(page_size, left or page_size)})
            page = self._transport.json("GET", path, params=params)
            yield from (kind.model_validate(item) for item in page["data"])
            if not page["has_more"]:
                return
            after, left = page["last_id"], None if left is None else left - len(page["data"])


def _path(*parts: str) -> str:
    if any(part in ("", ".", "..") for part in parts):
        raise BadRequest(f"{'/'.join(parts)!r} names nothing")
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != []}
