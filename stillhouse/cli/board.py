"""Watching jobs: progress bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from stillhouse import Client, Job
from stillhouse.cli import views

POLL_SECONDS = 0.3
PLAIN_SHARE = 0.2
"""Without a terminal: share of the steps after which progress is printed again."""
LOSS = "train/loss"


@dataclass
class _Watched:
    """A watched job, and what was already printed."""

    job: Job
    bar: TaskID
    seq: int = 0
    loss: float | None = None
    shown_share: float = 0.0
    shown_status: str = ""
    shown_reason: str | None = None

    @property
    def name(self) -> str:
        return self.job.name or self.job.id

    @property
    def share(self) -> float:
        if self.job.status == "succeeded":
            return 1.0
        progress = self.job.progress
        return progress.step / progress.total_steps if progress.total_steps else 0.0


def follow(client: Client, jobs: Sequence[Job], console: Console, *, events: bool = True) -> list[Job]:
    """Show jobs until all are final, and return them as they ended; `events` adds their event log.

    It continues after restarts of the service.
    """
    client = client.patient()
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        watched = [_Watched(job, bars.add_task(job.name or job.id, total=1.0, text="")) for job in jobs]
        pending = watched
        while pending:
            for item in pending:
                _refresh(client, item)
                if events:
                    _show_events(client, item, bars.console.print, named=len(jobs) > 1)
                _show_reason(item, bars.console.print)
                bars.update(item.bar, completed=item.share, text=_text(item))
                if not console.is_terminal:
                    _show_progress(item, console, status=not events)
            pending = [item for item in pending if not item.job.is_final]
            if pending:
                time.sleep(POLL_SECONDS)
    return [item.job for item in watched]


def _refresh(client: Client, item: _Watched) -> None:
    step = item.job.progress.step
    item.job = client.job(item.job.id)
    if item.job.progress.step != step:
        series = client.metrics(item.job.id, LOSS, points=2)
        item.loss = next((values.values[-1] for values in series if values.values), item.loss)


def _show_events(client: Client, item: _Watched, show: Callable[[Text], None], *, named: bool) -> None:
    for event in client.events(item.job.id, after=item.seq):
        item.seq = event.seq
        show(views.event(event, item.name if named else ""))


def _show_reason(item: _Watched, show: Callable[[Text], None]) -> None:
    """Show why no worker would take a queued job, once for each reason."""
    if item.job.reason and item.job.reason != item.shown_reason:
        show(Text.assemble((f"{item.name} waits: ", "yellow"), item.job.reason))
    item.shown_reason = item.job.reason


def _show_progress(item: _Watched, console: Console, *, status: bool) -> None:
    """Print the progress of a job if it has changed."""
    changed = status and item.job.status != item.shown_status
    if changed or item.share >= item.shown_share + PLAIN_SHARE:
        console.print(f"{item.name:<20} {_text(item)}", markup=False, soft_wrap=True)
        item.shown_share = item.share
    item.shown_status = item.job.status


def _text(item: _Watched) -> str:
    job, progress = item.job, item.job.progress
    running = job.status == "running"
    place = job.reason or (f"{job.queue_position} ahead in the queue" if job.queue_position else "")
    parts = [
        f"{job.phase if running and job.phase else job.status:<10}",
        f"step {progress.step}/{progress.total_steps}" if progress.total_steps else place,
        f"loss {item.loss:.4f}" if item.loss is not None else "",
        f"{progress.samples_per_second:,.0f} samples/s" if progress.samples_per_second and running else "",
        f"{views.seconds(progress.seconds_left)} left" if progress.seconds_left is not None and running else "",
        f"attempt {views.attempt(job)}" if job.attempt > 1 else "",
        views.failure(job) if job.error else "",
    ]
    return "  ".join(part for part in parts if part)
