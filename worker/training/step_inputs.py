"""Inputs of training steps: a batch in its micro-batches, and the teacher outputs for each.

On a GPU the inputs of the next step are prepared while a step runs: the batch is gathered, copied to the GPU and
augmented, and the teachers are run, on a separate stream. A batch is a function of its step only, so the time of its
preparation does not change the step. It costs the memory of one more batch with its teacher outputs.
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
"""Outputs of the teachers, by their names."""


@dataclass(frozen=True, eq=False)
class StepInputs:
    """Inputs of one optimizer step; see `Batch` and `TeacherSignal` for shapes and dtypes."""

    batch: Batch
    micro_batches: list[Batch]
    """The micro-batches that the batch is split into."""
    signals: list[Signals] | None
    """Teacher outputs for each micro-batch; none: they have not been computed yet."""

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, of any shapes and dtypes, without those that are views of others."""
        yield from (*self.batch.inputs.values(), self.batch.targets, self.batch.index)
        for signals in self.signals or ():
            for signal in signals.values():
                yield from _tensors(signal)


class SideStream(Protocol):
    """Prepares step inputs while a step runs."""

    def begin(self) -> None:
        """Called before the first `start`, once weights and samples are on the device."""
        ...

    def start(self, make: Callable[[], StepInputs]) -> StepInputs:
        """Start preparing step inputs; the device may not have computed them yet when this returns."""
        ...

    def hand_over(self, step_inputs: StepInputs) -> None:
        """Make the next step wait for `step_inputs`, which were started last."""
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
        """See `SideStream`; memory that this stream has allocated is not reused before the step is done."""
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in step_inputs.tensors():
            if tensor.is_cuda:
                tensor.record_stream(current)


def choose_side_stream(device: torch.device) -> SideStream | None:
    """A side stream on a GPU; none on a CPU, where a step uses all cores."""
    return CudaSideStream(device) if device.type == "cuda" else None


class Prefetcher:
    """Inputs of consecutive steps, built by `make`; on a side stream, each one step ahead and none beyond `end`."""

    def __init__(self, make: Callable[[int], StepInputs], end: int, side_stream: SideStream | None) -> None:
        self._make, self._end, self._side_stream = make, end, side_stream
        self._ahead: tuple[int, StepInputs] | None = None
        if side_stream is not None:
            side_stream.begin()

    def at(self, step: int) -> StepInputs:
        """Inputs of this step, which the current stream may use."""
        if self._side_stream is None:
            return self._make(step)
        if self._ahead is None or self._ahead[0] != step:
            self.prepare(step)
        assert self._ahead is not None  # steps are before the end
        step_inputs, self._ahead = self._ahead[1], None
        self._side_stream.hand_over(step_inputs)
        return step_inputs

    def prepare(self, step: int) -> None:
        """Start preparing the inputs of this step if there is a side stream; called once the step before is queued."""
        if self._side_stream is not None and step < self._end:
            self._ahead = step, self._side_stream.start(lambda: self._make(step))


def _tensors(signal: TeacherSignal) -> Iterator[Tensor]:
    for value in vars(signal).values():
        values = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        yield from (each for each in values if isinstance(each, Tensor))
