"""Output of commands: one JSON document (or JSON lines) with `--json`, else text and tables for people."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stillhouse import ClientError, ServiceError

INTERRUPTED = 130
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
PIPE_WIDTH = None if sys.stdout.isatty() else 200
"""Width for pipes, wide enough for one line per row of a table."""
out = Console(highlight=False, width=PIPE_WIDTH)
err = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class CommandOutput:
    """The result of a command: its data, a function that shows it to people, and the exit code."""

    data: Any
    show: Callable[[Console], object]
    code: int = 0


@dataclass(frozen=True)
class LineOutput:
    """An incremental result. Both functions run to its end and return the exit code; `lines` writes documents."""

    lines: Callable[[Callable[[Any], None]], int]
    show: Callable[[Console], int]


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., CommandOutput | LineOutput]], None]:
    """Register a function as a command with a `--json` flag; its errors become messages and exit codes."""

    def register(function: Callable[..., CommandOutput | LineOutput]) -> None:
        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            as_json = arguments.pop("as_json")
            raise typer.Exit(_run(functools.partial(function, **arguments), as_json))

        signature = inspect.signature(function, eval_str=True)
        flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonFlag)
        parameters = [*signature.parameters.values(), flag]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by typer
        app.command(name)(run)

    return register


def _run(function: Callable[[], CommandOutput | LineOutput], as_json: bool) -> int:
    try:
        answer = function()
        if isinstance(answer, LineOutput):
            return answer.lines(print_json) if as_json else answer.show(out)
        if as_json:
            print_json(answer.data, indent=2)
        else:
            answer.show(out)
        return answer.code
    except ClientError as error:
        if as_json:
            print_json(error.document(), indent=2)
        else:
            show_error(error, err)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def print_json(data: Any, indent: int | None = None) -> None:
    """Write one document to standard output; a list is wrapped like the service's lists."""
    plain = to_jsonable_python(data, by_alias=True)
    document = {"object": "list", "data": plain} if isinstance(plain, list) else plain
    typer.echo(json.dumps(document, indent=indent, ensure_ascii=False))


def show_error(error: ClientError, console: Console) -> None:
    """Print an error, with its invalid fields and a hint."""
    console.print(Text.assemble(("Error: ", "red"), str(error)), soft_wrap=True)  # paths are not wrapped
    problems = error.errors if isinstance(error, ServiceError) else []
    if problems:
        table = Table("field", "error", "accepted", box=None, padding=(0, 2), header_style="bold")
        for problem in problems:
            table.add_row(problem.param, problem.message, problem.accepted or "")
        console.print(table)
    if error.hint:
        console.print(error.hint, style="dim")
    if isinstance(error, ServiceError) and error.request_id:
        console.print(f"request {error.request_id}", style="dim")
