"""Commands that run the service, and those for the service as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from stillhouse import BadRequest, Client
from stillhouse.cli import views
from stillhouse.cli.commands.root import app, keys
from stillhouse.cli.output import CommandOutput, LineOutput, command
from stillhouse.connection import Connection

if TYPE_CHECKING:
    from app.core.settings import Settings


@command(app)
def catalog(
    group: Annotated[str | None, typer.Argument(help="losses, optimizers, schedules or students")] = None,
) -> CommandOutput:
    """Show the options of a job."""
    found = Client().catalog(group)
    return CommandOutput(found, views.show(views.catalog(found)))


@command(keys, "create")
def create_key(
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    scope: Annotated[list[str] | None, typer.Option(help="Permission of the key. May be repeated.")] = None,
) -> CommandOutput:
    """Create a key. It is shown only once."""
    key = Client().create_key(name, scope or ())
    return CommandOutput(key, lambda console: console.print(key.key, soft_wrap=True))


@command(keys, "list")
def list_keys() -> CommandOutput:
    """List keys."""
    found = list(Client().api_keys())
    return CommandOutput(found, views.show(views.keys(found)))


@command(keys, "revoke")
def revoke_key(key: Annotated[str, typer.Argument(help="A key's id, key_…", show_default=False)]) -> CommandOutput:
    """Revoke a key."""
    revoked = Client().revoke_key(key)
    return CommandOutput(revoked, lambda console: console.print(f"{key} was revoked"))


@command(app)
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of database, files and secret.")] = None,
) -> LineOutput:
    """Run the service on this machine, in the foreground: API and one worker. Ctrl-C stops both."""
    settings = _settings(host=host, port=port, data_dir=data_dir)
    from stillhouse.cli.embedded import up as run  # the whole API: costs half a second

    def lines(write: Callable[[Any], None]) -> int:
        return run(settings, lambda connection: write({"object": "service", **_addresses(connection)}))

    def show(console: Console) -> int:
        return run(settings, lambda connection: console.print(views.facts(_addresses(connection).items())))

    return LineOutput(lines, show)


def _addresses(connection: Connection) -> dict[str, str]:
    return {
        "url": connection.url,
        "docs": f"{connection.url}/docs",
        "key": connection.key or "one of yours: the first one is not stored here",
    }


@command(app)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = None,
) -> LineOutput:
    """Run only the API, as in containers. The database must be migrated."""
    settings = _settings(host=host, port=port)
    from stillhouse.cli.embedded import serve as run

    def lines(write: Callable[[Any], None]) -> int:
        return run(settings, lambda url: write({"object": "service", "url": url}))

    return LineOutput(lines, lambda console: run(settings, lambda url: console.print(f"listening on {url}")))


@command(app)
def node(
    address: Annotated[
        str, typer.Argument(help="Host and port of the worker: its STILLHOUSE_WORKER_RENDEZVOUS.", show_default=False)
    ],
) -> LineOutput:
    """Take part in a worker's jobs for several machines, until a signal is received."""
    from app.core.settings import ADDRESS

    if not re.fullmatch(ADDRESS, address):
        raise BadRequest(f"{address!r} is not an address; accepted: HOST:PORT, the port from 1 to 65535")
    from worker.trainer.node import serve as run  # torch takes seconds

    def lines(write: Callable[[Any], None]) -> int:
        try:
            run(address, lambda message: write({"object": "node", "message": message}))
        except OSError as error:
            raise BadRequest(f"{address} can't be resolved: {error.strerror}") from error
        return 0

    return LineOutput(lines, lambda console: lines(lambda line: console.print(line["message"])))


@command(app)
def migrate() -> CommandOutput:
    """Migrate the database to the newest schema."""
    settings = _settings()
    from app.core.migrate import upgrade

    upgrade(settings.resolved_database_url)
    return CommandOutput(
        {"object": "migration", "migrated": True}, lambda console: console.print("the database is up to date")
    )


@command(app)
def doctor() -> CommandOutput:
    """Show what this machine supports, what is missing, and the consequences."""
    _settings()
    from stillhouse.cli.doctor import examine, view

    checks = examine()
    broken = any(check.state == "broken" for check in checks)
    return CommandOutput(checks, views.show(view(checks)), code=1 if broken else 0)


def _settings(**changes: object) -> Settings:
    """Settings with the options of the command line, which the worker inherits too. Raises `BadRequest`."""
    from pydantic import ValidationError

    from app.core.settings import Settings

    os.environ |= {f"STILLHOUSE_{name.upper()}": str(value) for name, value in changes.items() if value is not None}
    try:
        return Settings()
    except ValidationError as error:
        lines = (": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors())
        raise BadRequest("; ".join(lines)) from None
