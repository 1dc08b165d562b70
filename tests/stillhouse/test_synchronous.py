"""The blocking client is made from the asynchronous one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse import AsyncClient, Client

ROOT = Path(__file__).parents[2]


def test_the_blocking_client_is_what_the_script_makes() -> None:
    command = [sys.executable, "scripts/sync_client.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def public(client: type) -> dict[str, object]:
    return {name: member for name, member in inspect.getmembers(client, callable) if not name.startswith("_")}


def test_both_have_the_same_methods_with_the_same_parameters() -> None:
    blocking, awaited = public(Client), public(AsyncClient)
    assert blocking.keys() == awaited.keys()
    for name in blocking:
        of = [inspect.signature(methods[name]).parameters for methods in (blocking, awaited)]  # type: ignore[arg-type]  # callable
        assert list(of[0].values()) == list(of[1].values()), name


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_every_method_is_documented(client: type) -> None:
    for name, method in public(client).items():
        assert inspect.getdoc(method), name
