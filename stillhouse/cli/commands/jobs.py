"""Commands that submit, show and control jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from stillhouse import Client, Job, Result, documents
from stillhouse.cli import board, views
from stillhouse.cli.commands.common import Assignments, JobFile, JobId, Limit, Outage, status_of
from stillhouse.cli.commands.root import app
from stillhouse.cli.output import INTERRUPTED, CommandOutput, LineOutput, command, err
from stillhouse.cli.recommendations import recommendation
from stillhouse.retries import OUTAGE_SECONDS

MAX_POINTS = 10_000
"""Most values of a series."""


def _read(client: Client, file: Path, assignments: list[str] | None) -> dict[str, Any]:
    """The job of a file, after uploading its local data."""
    document = documents.read(file, assignments or ())
    return client.upload_data(document, folder=file.parent, notify=lambda line: err.print(line, style="dim"))


@command(app)
def submit(
    file: JobFile,
    assignments: Assignments = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Watch it until it ends.")] = False,
) -> CommandOutput | LineOutput:
    """Submit a job. Local data is uploaded first, unless the service already has it; a folder of images is packed."""
    client = Client()
    job = client.submit(_read(client, file, assignments))
    if watch:
        return _watch(client, [job])
    return CommandOutput(job, views.show(views.submitted(job)))


@command(app)
def diagnose(
    model: Annotated[str, typer.Argument(help="A model's id, model_…", show_default=False)],
    kind: Annotated[list[str], typer.Option(help="A kind of diagnostic. May be repeated.", show_default=False)],
    data: Annotated[str, typer.Option(help="Training samples: a file, a folder or an id.", show_default=False)],
    held_out: Annotated[
        str | None, typer.Option("--eval", help="Held-out samples; default: a share of the training samples.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set a value, as in data.format=csv or evaluation.diagnostics[0].samples=100."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Watch it until it ends.")] = False,
) -> CommandOutput | LineOutput:
    """Run diagnostics of a stored model, as a job that trains nothing. Local data is uploaded first."""
    client = Client()
    wanted = documents.diagnosis(kind, data, held_out, assignments or ())
    job = client.diagnose(model, wanted, folder=Path.cwd())
    if watch:
        return _watch(client, [job])
    return CommandOutput(job, views.show(views.submitted(job)))


@command(app)
def validate(file: JobFile, assignments: Assignments = None) -> CommandOutput:
    """Validate a job without running it: show the resolved job, or all its errors. Local data is uploaded."""
    client = Client()
    result = client.validate(_read(client, file, assignments))
    return CommandOutput(result, views.show(views.validation(result)), code=0 if result.valid else 1)


@command(app)
def recommend(
    file: JobFile,
    assignments: Assignments = None,
    top: Annotated[int, typer.Option(min=1, max=20, help="Most recipes.")] = 3,
) -> CommandOutput:
    """Recommend recipes for a job without one, learned from the project's past jobs. Local data is uploaded."""
    client = Client()
    found = client.recommend(_read(client, file, assignments), top=top)
    return CommandOutput(found, views.show(recommendation(found)))


@command(app)
def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this status.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this name.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only jobs with this label, as key:value. May be repeated.")
    ] = None,
    limit: Limit = 20,
) -> CommandOutput:
    """List jobs with their results, newest first."""
    found = list(Client().jobs(status=status, name=name, labels=label or (), limit=limit))
    return CommandOutput(found, views.show(views.jobs(found)))


@command(app)
def show(job: JobId) -> CommandOutput:
    """Show a job, its result and its files."""
    client = Client()
    found = client.job(job)
    artifacts = client.artifacts(job)
    return CommandOutput(found, views.show(views.job(found, artifacts, _result(client, found))))


def _result(client: Client, job: Job) -> Result | None:
    return client.result(job.id) if job.status == "succeeded" else None


@command(app)
def watch(
    jobs: Annotated[list[str], typer.Argument(help="Ids of jobs, job_…", show_default=False)],
    outage: Outage = OUTAGE_SECONDS,
) -> LineOutput:
    """Watch jobs until they end: progress bars, event log and results. Fails if one of them does not succeed.

    Ctrl-C stops watching (exit code 130), not the jobs.
    """
    client = Client(outage_seconds=outage)
    return _watch(client, [client.job(id) for id in jobs])


def _watch(client: Client, jobs: list[Job]) -> LineOutput:
    def lines(write: Callable[[Any], None]) -> int:
        for job in jobs:
            for event in client.watch(job.id):
                write({"job_id": job.id, **event.model_dump(mode="json")})
        ended = [client.patient().job(job.id) for job in jobs]
        for result in filter(None, (_result(client, job) for job in ended)):
            write(result)
        return _worst(ended)

    def follow(console: Console) -> int:
        ended = board.follow(client, jobs, console)
        for job in ended:
            console.print(views.outcome(job, _result(client, job)))
        return _worst(ended)

    return LineOutput(_interruptible(lines, jobs), _interruptible(follow, jobs))


def _interruptible(run: Callable[[Any], int], jobs: list[Job]) -> Callable[[Any], int]:
    """As `run`; Ctrl-C stops watching, and the jobs continue."""

    def watching(to: Any) -> int:
        try:
            return run(to)
        except KeyboardInterrupt:
            err.print(views.still_running(jobs), soft_wrap=True)
            return INTERRUPTED

    return watching


def _worst(jobs: list[Job]) -> int:
    return 0 if all(job.status == "succeeded" for job in jobs) else 1


@command(app)
def logs(
    job: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only events after this number.")] = 0,
    level: Annotated[str | None, typer.Option(help="Only events of this level: info, warning or error.")] = None,
) -> CommandOutput:
    """Show the events of a job: changes of status, phases, checkpoints and log lines of its trainer."""
    events = [event for event in Client().events(job, after=after) if level in (None, event.level)]
    lines = [views.event(event) for event in events] or [Text("no events")]
    return CommandOutput(events, views.show(Text("\n").join(lines)))


@command(app)
def metrics(
    job: JobId,
    name: Annotated[str | None, typer.Option(help="Only this series, such as eval/accuracy.")] = None,
    points: Annotated[
        int | None,
        typer.Option(min=2, max=10_000, help="Approximate number of values per series; default: 20 with --name."),
    ] = None,
) -> CommandOutput:
    """Show the metrics of a job: first, last, smallest and largest values, or with --name the values of one."""
    series = Client().metrics(job, name, points=points or (MAX_POINTS if name is None else 20))
    return CommandOutput(series, views.show(views.series(series, in_full=name is not None)))


@command(app)
def cancel(job: JobId) -> CommandOutput:
    """Cancel a job."""
    return status_of(Client().cancel(job))


@command(app)
def pause(job: JobId) -> CommandOutput:
    """Pause a job after a checkpoint."""
    return status_of(Client().pause(job))


@command(app)
def resume(job: JobId) -> CommandOutput:
    """Resume a paused job from its checkpoint."""
    return status_of(Client().resume(job))


@command(app)
def clone(job: JobId, assignments: Assignments = None) -> CommandOutput:
    """Submit a copy of a job, with some values replaced."""
    client = Client()
    overrides = documents.overrides(client.job(job).spec, assignments or ())
    return status_of(client.clone(job, overrides))


@command(app)
def prioritise(job: JobId, priority: Annotated[int, typer.Argument(min=0, max=100)]) -> CommandOutput:
    """Change the priority of a queued job: higher runs first."""
    return status_of(Client().prioritise(job, priority))
