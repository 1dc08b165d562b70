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
SECONDS_QUIET = 0.25
"""Without a command for that long, a spare spends its time on imports that only the export will need."""


class Channel:
    """The two pipes. Whatever else writes to stdout goes to stderr, so a stray print can't garble the protocol."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._in: BinaryIO = os.fdopen(0, "rb", buffering=0, closefd=False)
        self._stop = threading.Event()

    def send(self, message: Message) -> None:
        """Say something; one write, so that lines never mix."""
        self._out.write(message.model_dump_json().encode() + b"\n")

    def receive(self) -> Start | Stop | None:
        """Wait for the next command; none when the supervisor has closed its end. Skips what it can't read."""
        while line := self._in.readline():
            try:
                return COMMANDS.validate_json(line)
            except ValidationError:
                continue
        return None

    def quiet(self, seconds: float) -> bool:
        """Whether `seconds` pass without a word from the supervisor."""
        return not select.select([self._in], [], [], seconds)[0]

    def listen(self) -> None:
        """From now on mind `Stop`; leave the process at once when the supervisor has closed its end."""
        threading.Thread(target=self._mind, daemon=True).start()

    def stopped(self) -> bool:
        """Whether the supervisor has asked to stop."""
        return self._stop.is_set()

    def _mind(self) -> None:
        while command := self.receive():
            if isinstance(command, Stop):
                self._stop.set()
        os._exit(1)


def serve(channel: Channel) -> None:
    """Get warm, wait for one job, do it, say the last word; returns early when none comes."""
    from worker.trainer import warm_up as warmth  # torch takes seconds: only after stdout was made safe

    warmth.warm_up()
    channel.send(Ready())
    warmth.get_warmer(lambda: channel.quiet(SECONDS_QUIET))
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
