"""The command line `stillhouse`.

Exit codes: 0 done, 1 the job or command failed, 2 wrong usage, 3 service unreachable, 130 interrupted.
"""

from __future__ import annotations

from stillhouse.cli.commands import files, jobs, models, service
from stillhouse.cli.commands.root import app, keys

__all__ = ["app", "files", "jobs", "models", "service"]

app.add_typer(keys, name="keys")
