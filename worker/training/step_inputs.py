"""What a step learns from: a batch in its parts, and what the teachers say of each.

On a GPU the next lesson is prepared while a step runs: the batch is gathered, brought over and augmented, and the
teachers are asked, on a stream of their own. A batch is a function of its step alone, so nothing of a step depends on
when its lesson was prepared. The price is the memory of one more batch with its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.data.batches import Batch
from worker.outputs import TeacherSignal

Signals = dict[str, TeacherSignal]
"""Of the teachers, by their names."""


@dataclass(frozen=True, eq=False)
class StepInputs:
    """Of one step."""

    batch: Batch
    parts: list[Batch]
    """The micro-batches that it is split into."""
    signals: list[Signals] | None
    """What is said of each part; none: the teachers have not been asked yet."""

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds, but for what it holds views of."""
        yield from (*self.batch.inputs.values(), self.batch.targets, self.batch.index)
        for signals in self.signals or ():
            for signal in signals.values():
                yield from _tensors(signal)


class SideStream(Protocol):
    """Where lessons are prepared while a step runs."""

    def begin(self) -> None:
        """Called before the first lesson: weights and samples are there."""
        ...

    def start(self, make: Callable[[], StepInputs]) -> StepInputs:
        """The lesson, which may not be there yet on the device."""
        ...

    def hand_over(self, step_inputs: StepInputs) -> None:
        """Have the step that is taken next wait for the last lesson that was started, which is this one."""
        ...


class CudaSideStream:
    """A CUDA stream beside the current one."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """See `SideStream`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def start(self, make: Callable[[], StepInputs]) -> StepInputs:
        """See `SideStream`."""
        with torch.cuda.stream(self._stream):
            return make()

    def hand_over(self, step_inputs: StepInputs) -> None:
        """See `SideStream`; memory that this stream has allocated is not used again before the step is done with it."""
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in step_inputs.tensors():
            if tensor.is_cuda:
                tensor.record_stream(current)


def choose_side_stream(device: torch.device) -> SideStream | None:
    """A processor has nothing to spare beside a step."""
    return CudaSideStream(device) if device.type == "cuda" else None


class Prefetcher:
    """The lessons of consecutive steps, made by `make`; in a lane, each one ahead of its step and none beyond `end`."""

    def __init__(self, make: Callable[[int], StepInputs], end: int, side_stream: SideStream | None) -> None:
        self._make, self._end, self._side_stream = make, end, side_stream
        self._ahead: tuple[int, StepInputs] | None = None
        if side_stream is not None:
            side_stream.begin()

    def at(self, step: int) -> StepInputs:
        """That of this step; the current stream may use it."""
        if self._side_stream is None:
            return self._make(step)
        if self._ahead is None or self._ahead[0] != step:
            self.prepare(step)
        assert self._ahead is not None  # a step that is taken lies before the end
        step_inputs, self._ahead = self._ahead[1], None
        self._side_stream.hand_over(step_inputs)
        return step_inputs

    def prepare(self, step: int) -> None:
        """Begin with the lesson of this step, where there is a lane; called once the step before it has been queued."""
        if self._side_stream is not None and step < self._end:
            self._ahead = step, self._side_stream.start(lambda: self._make(step))


def _tensors(signal: TeacherSignal) -> Iterator[Tensor]:
    for value in vars(signal).values():
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        yield from (part for part in parts if isinstance(part, Tensor))
