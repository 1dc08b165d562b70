"""Runs the regression in a process of its own, one at a time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.recommendations.features import Features

log = logging.getLogger(__name__)
SECONDS = 120.0
"""Longest time that a request waits for the process."""
PASSED_ON = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""Variables of the environment that the process gets: no setting of the service, which may hold secrets."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""On a machine with other work, trees of a few hundred rows take a hundred times as long with a thread per core."""


class Expected(NamedTuple):
    """Expected score ratio of a recipe (see `app.recommendations.regression.Prediction`)."""

    expected: float
    lowest: float
    highest: float


class Ranking(NamedTuple):
    """Expectations for all candidates, and their quality (see `app.recommendations.regression.Fitted`)."""

    predictions: list[Expected]
    mean_absolute_error: float | None
    rank_correlation: float | None


class RegressionFailed(Exception):
    """The process died or exceeded its limits."""


async def rank(past: Sequence[Mapping[str, object]], candidates: Sequence[Features]) -> Ranking:
    """Fit past jobs (fields of `PastJob`), and predict the candidates' ratios. Raises `RegressionFailed`."""
    request = json.dumps({"past": past, "candidates": candidates}).encode()
    output = await _run(request)
    try:
        document = json.loads(output)
    except ValueError as error:
        raise RegressionFailed("its output is not JSON") from error
    predictions = [Expected(**each) for each in document["predictions"]]
    return Ranking(predictions, document["mean_absolute_error"], document["rank_correlation"])


async def _run(request: bytes) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "app.recommendations.child"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in PASSED_ON if name in os.environ} | ONE_THREAD,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(request), SECONDS)
    except TimeoutError:
        raise RegressionFailed(f"it took more than {SECONDS:g} seconds") from None
    finally:
        if process.returncode is None:  # also if the request was cancelled
            process.kill()
            await process.wait()
    if process.returncode:
        log.error("the regression ended with code %s: %s", process.returncode, errors.decode(errors="replace")[-2000:])
        raise RegressionFailed(f"it ended with code {process.returncode}")
    return output
