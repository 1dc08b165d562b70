"""Output of processes is read within a limit, and what was read is in the failure."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.servers.output import all_of, first_line, stderr_of

HANGS = "import sys, time; print('one', flush=True); print('two', file=sys.stderr, flush=True); time.sleep(60)"


def begin(program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_first_line_that_is_wanted_is_found_and_the_rest_can_be_read() -> None:
    with begin("print('a\\nb\\nc')") as process:
        assert first_line(process.stdout, lambda line: line == "b\n") == "b\n"
        assert first_line(process.stdout) == "c\n"
        assert all_of(process) == ("", "")


def test_a_pipe_that_is_closed_fails_with_what_it_held() -> None:
    with begin("print('a')") as process, pytest.raises(AssertionError, match=r"closed; read so far: \['a\\n'\]"):
        first_line(process.stdout, lambda line: line == "b\n")


def test_a_process_that_hangs_fails_with_what_was_read() -> None:
    with begin(HANGS) as process:
        first_line(process.stdout)
        with pytest.raises(AssertionError, match=r"nothing more in 0\.1 s; read so far: \['two\\n'\]"):
            first_line(process.stderr, lambda line: line == "three\n", seconds=0.1)
        process.kill()
    with begin(HANGS) as process:
        assert first_line(process.stdout) == "one\n"
        with pytest.raises(AssertionError, match=r"no end in 1\.0 s; read so far: \('', 'two\\n'\)"):
            all_of(process, seconds=1.0)
        assert process.returncode == -9


async def test_stderr_of_an_asynchronous_process_is_bounded_too() -> None:
    pipe = asyncio.subprocess.PIPE
    ended = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit('x')", stderr=pipe)
    assert (await stderr_of(ended)).strip() == b"x"
    assert ended.returncode == 1
    hangs = await asyncio.create_subprocess_exec(sys.executable, "-c", HANGS, stdout=pipe, stderr=pipe)
    assert hangs.stdout is not None
    await hangs.stdout.readline()
    with pytest.raises(AssertionError, match=r"no end in 1\.0 s; read so far: b'two"):
        await stderr_of(hangs, seconds=1.0)
    hangs.kill()
    await hangs.communicate()
