"""`python -m worker`: a worker that polls the database."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from pydantic import ValidationError

from app.core import logs
from app.core.settings import Settings
from worker.parent import die_with_parent
from worker.supervisor.gpus import NoGpu
from worker.supervisor.poller import serve


def main() -> int:
    """Run until a signal; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        settings = Settings(**({"queues": arguments.queues} if arguments.queues else {}))
    except ValidationError as error:
        parser.error("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))
    logs.configure(settings.log_format, settings.log_level)
    if arguments.parent is not None:
        # SIGTERM and not SIGKILL: if the service is killed, the job is saved and returned to the queue.
        die_with_parent(arguments.parent, signal.SIGTERM)
    try:
        asyncio.run(serve(settings))
    except NoGpu as error:
        print(f"python -m worker: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--queues", help="queues to serve, separated by commas; default: STILLHOUSE_QUEUES")
    parser.add_argument("--parent", type=int, metavar="PID", help="stop when this process, the parent, has died")
    return parser


if __name__ == "__main__":
    sys.exit(main())
