"""`worker.supervisor.celery_app`, but its trainers play the acts in STAGE_ACTS."""

from __future__ import annotations

import tests.worker.supervisor.scripted_worker  # noqa: F401  # puts the scripted trainer in place
from worker.supervisor.celery_app import app

__all__ = ["app"]
