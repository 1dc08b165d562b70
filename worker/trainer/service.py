"""The trainer as the supervisor's child: one JSON object per line on stdin and stdout."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from worker.protocol import COMMANDS, Assignment, Failed, Message, Ready, Start, Stop

ASSIGNMENT = "assignment.json"
IDLE_SECONDS = 0.25
"""Time without a command after which a spare imports modules that only the export needs."""


class Channel:
    """The two pipes. Other output to stdout is redirected to stderr, so a stray print can't garble the protocol."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._in: BinaryIO = os.fdopen(0, "rb", buffering=0, closefd=False)
        self._stop = threading.Event()

    def send(self, message: Message) -> None:
        """Send a message in one write, so that lines never mix."""
        self._out.write(message.model_dump_json().encode() + b"\n")

    def receive(self) -> Start | Stop | None:
        """Wait for the next command; none if the supervisor has closed its end. Skips malformed lines."""
        while line := self._in.readline():
            try:
                return COMMANDS.validate_json(line)
            except ValidationError:
                continue
        return None

    def quiet(self, seconds: float) -> bool:
        """Whether `seconds` pass without a command from the supervisor."""
        return not select.select([self._in], [], [], seconds)[0]

    def listen(self) -> None:
        """Watch for `Stop` from now on; exit the process at once if the supervisor closes its end."""
        threading.Thread(target=self._watch, daemon=True).start()

    def stopped(self) -> bool:
        """Whether the supervisor has sent `Stop`."""
        return self._stop.is_set()

    def _watch(self) -> None:
        while command := self.receive():
            if isinstance(command, Stop):
                self._stop.set()
        os._exit(1)


def serve(channel: Channel) -> None:
    """Warm up, wait for one job, run it, and send its result; returns early if there is none."""
    from worker.trainer import warm_up as warming  # torch takes seconds: only after stdout was redirected

    warming.warm_up()
    channel.send(Ready())
    warming.get_warmer(lambda: channel.quiet(IDLE_SECONDS))
    start = channel.receive()
    if isinstance(start, Start):
        channel.listen()
        channel.send(_work(Path(start.folder), channel))


def _work(folder: Path, channel: Channel) -> Message:
    from worker.trainer.perform import perform

    try:
        assignment = Assignment.model_validate_json((folder / ASSIGNMENT).read_bytes())
    except (OSError, ValidationError):
        return Failed(fault="system", code="invalid_assignment", message="the staged assignment can't be read")
    return perform(assignment, folder, channel.send, channel.stopped)
