"""A trainer that only reports at a steady rate, for measuring the receivers of reports.

`python -m bench.trainer MESSAGES VALUES`: so many messages a second with so many metrics each, and ten of progress.
"""

from __future__ import annotations

import select
import sys
import time

from worker.protocol import COMMANDS, Message, Metrics, PhaseBegan, Ready, Start, StepProgress

PROGRESS_PER_SECOND = 10


def main(messages: int, values: int) -> None:
    """Wait for `Start`, then report until stdin has input or ends."""
    _say(Ready())
    assert isinstance(COMMANDS.validate_json(sys.stdin.buffer.readline()), Start)
    _say(PhaseBegan(phase="training"))
    begin, step = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], max(0.0, begin + step / messages - time.monotonic()))[0]:
        step += 1
        _say(Metrics(step=step, values={f"train/{number}": number / step for number in range(values)}))
        if step % max(1, messages // PROGRESS_PER_SECOND) == 0:
            _say(_progress(step, step / messages))


def _progress(step: int, epoch: float) -> StepProgress:
    return StepProgress(step=step, total_steps=1 << 40, epoch=epoch, samples_per_second=1.0, seconds_left=None)


def _say(message: Message) -> None:
    sys.stdout.write(message.model_dump_json() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
