"""Jobs of every training method over HTTP whose trainer is killed at random steps, and their undisturbed twins."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from stillhouse import Job
from tests.test_every_kind import METHOD_JOBS, SECONDS, WEIGHTS, Service, service

__all__ = ["service"]
pytestmark = [pytest.mark.timeout(SECONDS), pytest.mark.long]
EPOCHS = 60
"""Of 2 to 3 steps each, of every period or stage: long enough to be killed in."""
KILLS = 2


def longer(job: dict[str, Any]) -> dict[str, Any]:
    recipe = {**job["recipe"], "epochs": EPOCHS, "checkpoint": {"every_steps": 20}}
    return {**job, "recipe": recipe, "resources": {"max_attempts": 8}}


def kill_trainers(service: Service) -> int:
    """Kill all trainers of the service, the spare one as well; returns how many there were."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    trainers = [child for child in children if "worker.trainer" in _command(child)]
    for trainer in trainers:
        trainer.kill()
    return len(trainers)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def killed_on_the_way(service: Service, job_id: str, moments: list[float]) -> Job:
    """Kill the trainer when these shares of the steps are done, each time that of another attempt; returns the job at
    its end."""
    dead = 0
    for share in sorted(moments):
        while not (job := service.client.job(job_id)).is_final:
            reached = job.progress.total_steps and job.progress.step >= share * job.progress.total_steps
            if reached and job.status == "running" and job.attempt > dead and kill_trainers(service):
                dead = job.attempt
                break
            time.sleep(0.02)
    return service.client.wait(job_id, timeout_seconds=SECONDS)


STEPPING = [kind for kind in METHOD_JOBS if kind != "export"]
"""Methods whose jobs take steps to be killed in."""


@pytest.mark.parametrize("kind", STEPPING)
def test_a_job_that_is_killed_at_random_steps_ends_with_the_same_weights(
    service: Service, kind: str, tmp_path: Path
) -> None:
    document = service.addressed(longer(METHOD_JOBS[kind]))
    moments = [random.uniform(0.0, 0.9) for _ in range(KILLS)]
    undisturbed = service.client.wait(service.client.submit(document).id, timeout_seconds=SECONDS)
    disturbed = killed_on_the_way(service, service.client.submit(document).id, moments)
    weights = {}
    for name, job in (("undisturbed", undisturbed), ("disturbed", disturbed)):
        assert job.status == "succeeded", (moments, job.error)
        (tmp_path / name).mkdir()
        weights[name] = service.client.download(job.id, WEIGHTS, tmp_path / name).read_bytes()
    assert disturbed.attempt > undisturbed.attempt, moments  # it was killed before its end
    assert weights["disturbed"] == weights["undisturbed"], moments
