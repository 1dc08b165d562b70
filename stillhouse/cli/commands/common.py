"""Parameters and functions that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from stillhouse import Job, local_files
from stillhouse.cli.output import CommandOutput, err

JobId = Annotated[str, typer.Argument(help="A job's id, job_…", show_default=False)]
JobFile = Annotated[
    Path, typer.Argument(help="A job in YAML or JSON; its data may be local files or folders.", dir_okay=False)
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a value, as in recipe.optimizer.lr=1e-3. May be repeated.")
]
Outage = Annotated[float, typer.Option(min=0, help="Longest outage of the service, in seconds.")]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number.")]


def status_of(job: Job) -> CommandOutput:
    """A job after a change of its status."""
    return CommandOutput(job, lambda console: console.print(f"{job.id} is {job.status}"))


def transfers() -> Progress:
    """Progress bars of file transfers."""
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def bar(bars: Progress, name: str, size: int) -> local_files.Progress:
    """The bar of one file."""
    task = bars.add_task(name, total=size)
    return lambda done, _: bars.update(task, completed=done)
