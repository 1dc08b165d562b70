"""Export formats of a student."""

from __future__ import annotations

from typing import NamedTuple

from app.recipe.cost import LARGEST_GRAPH
from app.recipe.job import ExportFormat, JobSpec
from app.recipe.students.architectures import BuiltIn, Network, opens_in_a_library


class Exports(NamedTuple):
    """Formats to write, and reasons for leaving out others of the default."""

    formats: list[ExportFormat]
    left_out: dict[ExportFormat, str]


def exports_of(job: JobSpec, network: Network, parameters: int) -> Exports:
    """The job's formats; else those for using the student without this service: its weights as safetensors, ONNX, and
    `torch-export` for a network that no public library can load, and the format of its quantisation."""
    if job.export is not None:
        return Exports(job.export, {})
    wanted: list[ExportFormat] = ["safetensors", "onnx"]
    if not opens_in_a_library(network):
        wanted.append("torch-export")
    if isinstance(network, BuiltIn) and network.quantise is not None:
        wanted += network.quantise.formats
    if is_too_large(parameters):
        return Exports([name for name in wanted if name != "onnx"], {"onnx": TOO_LARGE.format(parameters)})
    return Exports(wanted, {})


TOO_LARGE = "{:,} weights are more than one ONNX file can hold"


def is_too_large(parameters: int) -> bool:
    """Whether `parameters` weights of 4 bytes are too many for one ONNX file."""
    return 4 * parameters > LARGEST_GRAPH
