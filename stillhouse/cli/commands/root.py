"""The root command."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse.version import VERSION

app = typer.Typer(
    help="Distils models: give it a teacher, a student and a recipe; get a small model back.",
    epilog="Exit codes: 0 done, 1 the job or command failed, 2 wrong usage, 3 service unreachable, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys = typer.Typer(help="API keys of the project.", no_args_is_help=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stillhouse {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Distils models: give it a teacher, a student and a recipe; get a small model back."""
