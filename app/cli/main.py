"""The command line `stillhouse`. Exit codes: 0 done, 1 the job or command failed, 2 wrong use, 3 no service reached."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from rich.text import Text

from app.cli import board, documents, transfer, views
from app.cli.client import Client
from app.cli.connection import Connection
from app.cli.errors import BadRequest
from app.cli.objects import Artifact, Job
from app.cli.output import Answer, Stream, command, err
from app.cli.transport import OUTAGE_SECONDS
from app.recipe.hugging_face import is_model_file

if TYPE_CHECKING:
    from app.core.settings import Settings

app = typer.Typer(
    help="Distils models: give it a teacher, a student and a recipe; get a small model back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys = typer.Typer(help="API keys of the project.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="A job's id, job_…", show_default=False)]
JobFile = Annotated[Path, typer.Argument(help="A job in YAML or JSON; its data files may be local.", dir_okay=False)]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a value, as in recipe.optimizer.lr=1e-3. May be repeated.")
]

Outage = Annotated[float, typer.Option(min=0, help="For how many seconds the service may be away, as in a restart.")]


@command(app)
def submit(
    file: JobFile,
    assignments: Assignments = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Then watch it to its end.")] = False,
) -> Answer | Stream:
    """Send a job. Local data files are uploaded first, unless the service has them already."""
    document = documents.read(file, assignments or ())
    client = Client()
    job = client.submit(documents.send_data(client, document, file.parent))
    if watch:
        return _watch(client, [job])
    return Answer(
        job, lambda console: console.print(f"{job.id} is {job.status}; see it with: stillhouse watch {job.id}")
    )


@command(app)
def validate(file: JobFile, assignments: Assignments = None) -> Answer:
    """Say what would become of a job, and all that is wrong with it. Local data files are uploaded for that."""
    document = documents.read(file, assignments or ())
    client = Client()
    result = client.validate(documents.send_data(client, document, file.parent))
    return Answer(result, views.show(views.validation(result)), code=0 if result.valid else 1)


@command(app)
def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this status.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only jobs with this label, as key:value. May be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
) -> Answer:
    """List jobs, newest first."""
    found = list(Client().jobs(status=status, name=name, labels=label or (), limit=limit))
    return Answer(found, views.show(views.jobs(found)))


@command(app)
def show(job: JobId) -> Answer:
    """Show a job and its files."""
    client = Client()
    found = client.job(job)
    return Answer(found, views.show(views.job(found, client.artifacts(job))))


@command(app)
def watch(
    jobs: Annotated[list[str], typer.Argument(help="Ids of jobs, job_…", show_default=False)],
    outage: Outage = OUTAGE_SECONDS,
) -> Stream:
    """Watch jobs to their end: progress bars and event log. Fails if one of them does not succeed."""
    client = Client(outage_seconds=outage)
    return _watch(client, [client.job(id) for id in jobs])


def _watch(client: Client, jobs: list[Job]) -> Stream:
    def lines(tell: Callable[[Any], None]) -> int:
        for job in jobs:
            for event in client.watch(job.id):
                tell({"job_id": job.id, **event.model_dump(mode="json")})
        return _worst([client.patient().job(job.id) for job in jobs])

    def follow(console: Console) -> int:
        ended = board.follow(client, jobs, console)
        for job in ended:
            console.print(views.outcome(job))
        return _worst(ended)

    return Stream(lines, follow)


def _worst(jobs: list[Job]) -> int:
    return 0 if all(job.status == "succeeded" for job in jobs) else 1


@command(app)
def cancel(job: JobId) -> Answer:
    """End a job."""
    return _changed(Client().cancel(job))


@command(app)
def pause(job: JobId) -> Answer:
    """Halt a job after a checkpoint."""
    return _changed(Client().pause(job))


@command(app)
def resume(job: JobId) -> Answer:
    """Let a paused job go on from its checkpoint."""
    return _changed(Client().resume(job))


@command(app)
def clone(job: JobId, assignments: Assignments = None) -> Answer:
    """Send a job like another one, with some values replaced."""
    client = Client()
    overrides = documents.overrides(client.job(job).spec, assignments or ())
    return _changed(client.clone(job, overrides))


@command(app)
def prioritise(job: JobId, priority: Annotated[int, typer.Argument(min=0, max=100)]) -> Answer:
    """Change the priority of a queued job: higher runs first."""
    return _changed(Client().prioritise(job, priority))


def _changed(job: Job) -> Answer:
    return Answer(job, lambda console: console.print(f"{job.id} is {job.status}"))


@command(app)
def download(
    source: Annotated[str, typer.Argument(help="A job's or a model's id.", show_default=False)],
    folder: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: the id.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Only this file. May be repeated.")] = None,
    outage: Outage = OUTAGE_SECONDS,
) -> Answer:
    """Fetch the files of a job or model, and verify their sha256. A broken transfer is continued."""
    client = Client(outage_seconds=outage)
    is_model = source.startswith("model_")
    items = client.model(source).files if is_model else client.artifacts(source)
    wanted = [item for item in items if not name or item.name in name]
    if missing := set(name or ()) - {item.name for item in items}:
        raise BadRequest(f"{source} has no file {', '.join(sorted(missing))}")
    fetch = client.download_model if is_model else client.download
    paths = _fetch_all(fetch, source, wanted, folder or Path(source))
    data = [
        {"path": str(path), "sha256": item.sha256, "size": item.size} for path, item in zip(paths, wanted, strict=True)
    ]
    return Answer(data, views.show(Text("\n".join(map(str, paths)))))


def _fetch_all(fetch: Any, source: str, items: list[Artifact], folder: Path) -> list[Path]:
    paths = []
    with _transfers() as bars:
        for item in items:
            paths.append(fetch(source, item.name, folder, progress=_bar(bars, item.name, item.size)))
    return paths


def _transfers() -> Progress:
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _bar(bars: Progress, name: str, size: int) -> transfer.Progress:
    bar = bars.add_task(name, total=size)
    return lambda done, _: bars.update(bar, completed=done)


@command(app)
def upload(
    files: Annotated[
        list[Path], typer.Argument(help="Data (.npz) or weights (.safetensors, .pt).", show_default=False)
    ],
    resume: Annotated[str | None, typer.Option(help="Go on with a broken upload, upload_…")] = None,
    outage: Outage = OUTAGE_SECONDS,
) -> Answer:
    """Send files; one that the service has already, with this name and content, is not sent again."""
    if missing := [path for path in files if not path.is_file()]:
        raise BadRequest(f"there is no file {', '.join(map(str, missing))}")
    if resume and len(files) != 1:
        raise BadRequest("--resume goes with exactly one file")
    client = Client(outage_seconds=outage)
    sent = []
    with _transfers() as bars:
        for path in files:
            sent.append(client.upload(path, resume=resume, progress=_bar(bars, path.name, path.stat().st_size)))
    return Answer(sent, views.show(Text("\n".join(f"{file.id}  {file.name}" for file in sent))))


@command(app)
def models(
    model: Annotated[str | None, typer.Argument(help="Show this one, model_…", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
) -> Answer:
    """List models, or show one."""
    client = Client()
    if model is not None:
        one = client.model(model)
        return Answer(one, views.show(views.model(one)))
    found = list(client.models(limit=limit))
    return Answer(found, views.show(views.models(found)))


@command(app)
def register(
    weights: Annotated[
        Path, typer.Argument(help="Weights (safetensors, .pt), or a folder in the Hugging Face layout.", exists=True)
    ],
    config: Annotated[
        Path | None,
        typer.Argument(
            help="What they are: their config.json (architecture, input, classes), or an object with this as config "
            "beside name, checkpoint_key and key_map. A folder has its own.",
            dir_okay=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    checkpoint_key: Annotated[
        str | None, typer.Option(help="Where in a .pt file the weights lie, such as state_dict.")
    ] = None,
    key_map: Annotated[
        Path | None,
        typer.Option(
            help="Renames of the weights: a file in YAML or JSON (strip, drop, rename), or torchvision-resnet.",
            dir_okay=False,
        ),
    ] = None,
) -> Answer:
    """Make a model of your own weights, to be a teacher."""
    client = Client()
    description = documents.read(config) if config else None
    if weights.is_dir():
        if checkpoint_key or key_map:
            raise BadRequest("--checkpoint-key and --key-map go with a file of weights, not with a folder")
        paths = {path.relative_to(weights).as_posix(): path for path in sorted(weights.rglob("*"))}
        files = {name: client.upload(path).id for name, path in paths.items() if is_model_file(name)}
        model = client.register_folder(files, description, name)
    elif description is None:
        raise BadRequest("a file of weights needs a config.json that says what they are")
    else:
        told = documents.registration(description, name=name, checkpoint_key=checkpoint_key, key_map=key_map)
        model = client.register_model(client.upload(weights).id, **told)
    return Answer(model, lambda console: console.print(model.id))


@command(app)
def catalog(
    group: Annotated[str | None, typer.Argument(help="losses, optimizers, schedules or students")] = None,
) -> Answer:
    """Show what a job can ask for."""
    found = Client().catalog(group)
    return Answer(found, views.show(views.catalog(found)))


@command(keys, "create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[str] | None, typer.Option(help="What it may do. May be repeated.")] = None,
) -> Answer:
    """Make a key. It is shown this once."""
    key = Client().create_key(name, scope or ())
    return Answer(key, lambda console: console.print(key.key, soft_wrap=True))


@command(keys, "list")
def list_keys() -> Answer:
    """List keys."""
    found = list(Client().api_keys())
    return Answer(found, views.show(views.keys(found)))


@command(keys, "revoke")
def revoke_key(key: Annotated[str, typer.Argument(help="A key's id, key_…", show_default=False)]) -> Answer:
    """Make a key invalid."""
    revoked = Client().revoke_key(key)
    return Answer(revoked, lambda console: console.print(f"{key} is revoked"))


app.add_typer(keys, name="keys")


@command(app)
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of database, files and secret.")] = None,
) -> Stream:
    """Run the service here, in the foreground: API and one worker. Ctrl-C stops both."""
    settings = _settings(host=host, port=port, data_dir=data_dir)
    from app.cli.embedded import up as run  # the whole API: costs half a second

    def lines(tell: Callable[[Any], None]) -> int:
        return run(settings, lambda mine: tell({"object": "service", **_hello(mine)}))

    def show(console: Console) -> int:
        return run(settings, lambda mine: console.print(views.facts(_hello(mine).items())))

    return Stream(lines, show)


def _hello(mine: Connection) -> dict[str, str]:
    return {
        "url": mine.url,
        "docs": f"{mine.url}/docs",
        "key": mine.key or "one of yours: the first one is not kept here",
    }


@command(app)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = None,
) -> Stream:
    """Run the API alone, as containers do. The database must be migrated."""
    settings = _settings(host=host, port=port)
    from app.cli.embedded import serve as run

    def lines(tell: Callable[[Any], None]) -> int:
        return run(settings, lambda url: tell({"object": "service", "url": url}))

    return Stream(lines, lambda console: run(settings, lambda url: console.print(f"listening on {url}")))


@command(app)
def node(
    address: Annotated[
        str, typer.Argument(help="Host and port of the worker: its STILLHOUSE_WORKER_RENDEZVOUS.", show_default=False)
    ],
) -> Stream:
    """Help a worker on another machine with jobs for several machines, until a signal comes."""
    from app.core.settings import ADDRESS

    if not re.fullmatch(ADDRESS, address):
        raise BadRequest(f"{address!r} is no address; accepted: HOST:PORT, the port from 1 to 65535")
    from worker.node import serve as run  # torch takes seconds

    def lines(tell: Callable[[Any], None]) -> int:
        try:
            run(address, lambda said: tell({"object": "node", "message": said}))
        except OSError as error:
            raise BadRequest(f"{address} can't be looked up: {error.strerror}") from error
        return 0

    return Stream(lines, lambda console: lines(lambda said: console.print(said["message"])))


@command(app)
def migrate() -> Answer:
    """Bring the database to the newest schema."""
    settings = _settings()
    from app.core.migrate import upgrade

    upgrade(settings.resolved_database_url)
    return Answer(
        {"object": "migration", "migrated": True}, lambda console: console.print("the database is up to date")
    )


@command(app)
def doctor() -> Answer:
    """Say what this machine can do, what is missing, and what that means."""
    _settings()
    from app.cli.doctor import examine, view

    checks = examine()
    broken = any(check.state == "broken" for check in checks)
    return Answer(checks, views.show(view(checks)), code=1 if broken else 0)


def _settings(**changes: object) -> Settings:
    """Settings with what the command line says, which the worker inherits too. Raises `BadRequest`."""
    from pydantic import ValidationError

    from app.core.settings import Settings

    os.environ |= {f"STILLHOUSE_{name.upper()}": str(value) for name, value in changes.items() if value is not None}
    try:
        return Settings()
    except ValidationError as error:
        lines = (": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors())
        raise BadRequest("; ".join(lines)) from None
