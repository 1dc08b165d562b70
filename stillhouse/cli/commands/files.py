"""Commands for files, including those of jobs and models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from stillhouse import BadRequest, Client, ModelFile
from stillhouse.cli import views
from stillhouse.cli.commands.common import Limit, Outage, bar, transfers
from stillhouse.cli.commands.root import app
from stillhouse.cli.output import CommandOutput, command
from stillhouse.retries import OUTAGE_SECONDS


@command(app)
def download(
    source: Annotated[str, typer.Argument(help="A job's or a model's id.", show_default=False)],
    folder: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: the id.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Only this file. May be repeated.")] = None,
    outage: Outage = OUTAGE_SECONDS,
) -> CommandOutput:
    """Download the files of a job or model, and verify their sha256. An interrupted transfer is continued."""
    client = Client(outage_seconds=outage)
    items = _files_of(client, source)
    wanted = [item for item in items if not name or item.name in name]
    if missing := set(name or ()) - {item.name for item in items}:
        there = ", ".join(item.name for item in items) or "none"
        raise BadRequest(f"{source} has no file {', '.join(sorted(missing))}; available: {there}")
    if not items:
        raise BadRequest(f"{source} has no files{_why_none(client, source)}")
    fetch = client.download_model if source.startswith("model_") else client.download
    paths = _fetch_all(fetch, source, wanted, folder or Path(source))
    data = [
        {"path": str(path), "sha256": item.sha256, "size": item.size} for path, item in zip(paths, wanted, strict=True)
    ]
    return CommandOutput(data, views.show(Text("\n".join(map(str, paths)))))


def _files_of(client: Client, source: str) -> Sequence[ModelFile]:
    return client.model(source).files if source.startswith("model_") else client.artifacts(source)


def _why_none(client: Client, source: str) -> str:
    """A job publishes its files when it succeeds."""
    return "" if source.startswith("model_") else f": it is {client.job(source).status}"


def _fetch_all(fetch: Any, source: str, items: Sequence[ModelFile], folder: Path) -> list[Path]:
    paths = []
    with transfers() as bars:
        for item in items:
            paths.append(fetch(source, item.name, folder, progress=bar(bars, item.name, item.size)))
    return paths


@command(app)
def upload(
    files: Annotated[
        list[Path],
        typer.Argument(help="Data (.npz, .csv, .jsonl, .parquet, archives) or weights.", show_default=False),
    ],
    resume: Annotated[str | None, typer.Option(help="Continue an interrupted upload, upload_…")] = None,
    outage: Outage = OUTAGE_SECONDS,
) -> CommandOutput:
    """Upload files; one that the service already has, with this name and content, is not sent again."""
    if missing := [path for path in files if not path.is_file()]:
        raise BadRequest(f"there is no file {', '.join(map(str, missing))}")
    if resume and len(files) != 1:
        raise BadRequest("--resume needs exactly one file")
    client = Client(outage_seconds=outage)
    sent = []
    with transfers() as bars:
        for path in files:
            sent.append(client.upload(path, resume=resume, progress=bar(bars, path.name, path.stat().st_size)))
    return CommandOutput(sent, views.show(Text("\n".join(f"{file.id}  {file.name}" for file in sent))))


@command(app)
def files(
    source: Annotated[
        str | None, typer.Argument(help="A job or a model, whose files to list.", show_default=False)
    ] = None,
    limit: Limit = 20,
) -> CommandOutput:
    """List uploaded files, or the files of a job or model."""
    client = Client()
    if source is not None:
        items = _files_of(client, source)
        empty = Text("no files" + ("" if items else _why_none(client, source)))
        return CommandOutput(items, views.show(views.files(items) if items else empty))
    found = list(client.files(limit=limit))
    return CommandOutput(found, views.show(views.uploaded(found)))


@command(app)
def delete(
    ids: Annotated[list[str], typer.Argument(help="Finished jobs, files or models.", show_default=False)],
) -> CommandOutput:
    """Delete finished jobs, files and models. A job's model is kept until it is deleted itself."""
    if unknown := [id for id in ids if id.partition("_")[0] not in ("job", "file", "model")]:
        raise BadRequest(f"{unknown[0]!r} is not the id of a job, a file or a model; keys are revoked by `keys revoke`")
    client = Client()
    for id in ids:
        kind = id.partition("_")[0]
        {"job": client.delete_job, "file": client.delete_file, "model": client.delete_model}[kind](id)
    gone = [{"id": id, "deleted": True} for id in ids]
    return CommandOutput(gone, views.show(Text("\n".join(f"{id} was deleted" for id in ids))))
