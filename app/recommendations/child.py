"""The process that fits the regression: reads one document from standard input and writes one to standard output.

A process of its own, because scikit-learn adds 170 MB and two seconds of import to the one that has it, and because its
memory and time can be limited here without harm to the API.
"""

from __future__ import annotations

import json
import os
import resource
import sys

MEMORY_BYTES = 4 << 30
"""Largest address space; of it 0.3 GB are used."""
CPU_SECONDS = 60
NICENESS = 10


def main() -> None:
    """Limit this process, then read, fit and write."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.nice(NICENESS)
    from app.recommendations.regression import PastJob, recommend  # after the limits, since it imports scikit-learn

    document = json.load(sys.stdin)
    found = recommend([PastJob(**job) for job in document["past"]], document["candidates"])
    predictions = [prediction._asdict() for prediction in found.predictions]
    json.dump({**found._asdict(), "predictions": predictions}, sys.stdout)


if __name__ == "__main__":
    main()
