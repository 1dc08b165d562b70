"""Memory of a job's trainer on each kind of device, from descriptions alone.

The constants are measured on trainers of this project (docs/performance.md, "Estimates"), on a CPU; a GPU's memory is
computed, and its driver's is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from app.recipe.cost import known_costs, reconstruction_cost, student_cost
from app.recipe.job import JobSpec
from app.recipe.plan import LABEL_PASSES, LABELS_AT_ONCE, NetworkCosts, StepCost, model_memory
from app.recipe.students.architectures import (
    DualEncoder,
    InpFormerNetwork,
    Mlp,
    Network,
    TextTransformer,
    Transformers,
    Vit,
    codebook_of,
)
from app.recipe.students.inputs import ImageInput, Input, TextInput
from app.recipe.students.model import ModelConfig
from app.recipe.students.reconstruction import FeatureShape
from app.recipe.students.shrink import ENCODERS, all_heads
from app.recipe.tally import Cost
from app.recipe.tasks.base import CLASS_BYTES

MB = 2**20
TRAINER_BYTES = 420 * MB
"""Python, torch and the readers of data, before anything is read."""
LIBRARY_BYTES = 80 * MB
"""The Transformers library in addition."""
EXPORTER_BYTES = 140 * MB
"""ONNX and matplotlib in addition, while a student is exported."""
READING_COPIES = 6.0
"""Memory at the peak of reading and splitting samples, as a multiple of their size."""
KEPT_COPIES = 1.7
"""Memory of the samples during training, as a multiple of their size."""
EXPORT_COPIES = 5.5
"""Copies of the weights while graphs are written and compared with the trained model."""
CONVOLUTION_FACTOR, DENSE_FACTOR = 1.7, 1.2
"""Activations, their gradients and the work space of kernels, as a multiple of the counted activations."""
LEFT_OVER = 0.6
"""Share of the memory of activations that the process still holds during the export."""
LABEL_TOKENS = 16
"""Assumed tokens of a label's text."""
CUDA_BYTES = 512 * MB
"""Assumed for a CUDA context and the libraries' kernels on the GPU."""


class Footprint(NamedTuple):
    """Peaks of one trainer, in bytes."""

    host: int
    """Main memory, with torch itself."""
    gpu: int | None = None
    """Memory of the GPU; none on a CPU."""


def footprints(
    job: JobSpec,
    network: Network,
    costs: NetworkCosts,
    samples: int,
    sample_bytes: int,
    target_bytes: int = CLASS_BYTES,
) -> dict[str, Footprint]:
    """Footprints by device, `cpu` and `gpu`. `network` is the student's; `samples` counts training and evaluation
    together; one of them takes `sample_bytes`, and its targets `target_bytes` (see `TaskSpec.target_bytes`)."""
    resources = job.resources
    weights, activations = model_memory(job, costs, samples)
    activations = round(activations * (DENSE_FACTOR if _is_dense(network) else CONVOLUTION_FACTOR))
    data = samples * (sample_bytes + target_bytes)
    base = TRAINER_BYTES + (LIBRARY_BYTES if isinstance(network, Transformers | DualEncoder) else 0)
    reading = base + round(READING_COPIES * data)
    written = round(EXPORT_COPIES * 4 * costs.student.parameters)
    training = base + weights + activations + round(KEPT_COPIES * data)
    exporting = base + EXPORTER_BYTES + max(written, round(LEFT_OVER * activations)) + round(KEPT_COPIES * data)
    others = (resources.processes - 1) * base
    on_cpu = Footprint(max(reading, training, exporting) + others)
    host = max(reading, base + EXPORTER_BYTES + written + round(KEPT_COPIES * data))
    on_device = CUDA_BYTES * resources.processes + weights + activations + data
    return {"cpu": on_cpu, "gpu": Footprint(host + others, on_device)}


def network_costs(
    job: JobSpec, network: Network, student: Cost, teachers: Mapping[str, ModelConfig], sample: Input, outputs: int
) -> NetworkCosts | None:
    """Costs of all networks of a job, given those of its student, `network`, for a `sample`; none if one is unknown.
    `teachers` are described by name."""
    method, fixed, learning = job.recipe.method, list[Cost | None](), list[Cost | None]()
    for name, teacher in teachers.items():
        cost = rough_cost(teacher.architecture, teacher.input, teacher.outputs)
        (learning if name == job.trained_teacher else fixed).append(cost)
    learning += [rough_cost(other, sample, outputs) for other in method.networks().values()]
    learning += [student] * method.same_networks
    labels = None
    if isinstance(network, DualEncoder):
        given = job.student.labels_per_step if isinstance(job.student, DualEncoder) else None
        labels = _label_cost(network, sample, min(outputs, given or outputs))
    known, learners = known_costs(fixed), known_costs(learning)
    return None if known is None or learners is None else NetworkCosts(student, known, learners, labels)


def rough_cost(network: Network, sample: Input, outputs: int) -> Cost | None:
    """As `student_cost`, and an estimate for the Transformers library's most common encoders and decoders; else
    none."""
    if isinstance(network, DualEncoder):
        return _with_labels(network, sample, outputs)
    if isinstance(network, InpFormerNetwork) and isinstance(network.encoder, Transformers):
        return _around_the_library(network, network.encoder, sample)
    if not isinstance(network, Transformers):
        return student_cost(network, sample, outputs)
    if network.model_type not in ENCODERS:
        return None
    try:
        return _of_the_library(network, sample, outputs)
    except (TypeError, ValueError, ArithmeticError):  # invalid sizes are refused by the library
        return None


def _around_the_library(network: InpFormerNetwork, encoder: Transformers, sample: Input) -> Cost | None:
    frozen = rough_cost(encoder, sample, network.encoder_outputs)
    if frozen is None or not isinstance(sample, ImageInput):
        return None
    shape = FeatureShape(ENCODERS[encoder.model_type].sizes(encoder.config)[1], _tokens(encoder, sample)[0] - 1)
    return reconstruction_cost(network, frozen, shape, sample)


def _of_the_library(network: Transformers, sample: Input, outputs: int) -> Cost:
    encoder, heads = ENCODERS[network.model_type], all_heads(network)
    depth, width, _, hidden = encoder.sizes(network.config)
    tokens, vocabulary = _tokens(network, sample)
    matrices = depth * (2 * width * heads.size * (heads.of + heads.of_shared) + (2 + encoder.gated) * width * hidden)
    head = network.head.rows(vocabulary if network.decodes else outputs) * width
    kept = depth * tokens * (8 * width + (2 + encoder.gated) * hidden)
    flops = 2 * matrices * tokens + 4 * depth * tokens * tokens * width + 2 * head * (tokens if network.decodes else 1)
    tied = network.decodes and codebook_of(network) is None
    parameters = matrices + vocabulary * width + (0 if tied else head)
    return Cost(parameters, flops, kept, tokens * max(hidden, 3 * width), matrices)


def _with_labels(network: DualEncoder, sample: Input, labels: int) -> Cost | None:
    """Cost of a text, compared with the vectors of all labels, which are no trained weights."""
    assert isinstance(network.encoder, Transformers)  # a stored one was replaced by its network
    whole, alone = (rough_cost(network.encoder, sample, outputs) for outputs in (labels, 0))
    if whole is None or alone is None:
        return None
    return replace(whole, parameters=alone.parameters, activations=whole.activations + labels)


def _label_cost(network: DualEncoder, sample: Input, labels: int) -> StepCost | None:
    """Cost of encoding the texts of so many labels in a step; none if it is unknown."""
    assert isinstance(network.encoder, Transformers)  # as above
    assert isinstance(sample, TextInput)  # the rules refuse others
    one = rough_cost(network.encoder, sample.model_copy(update={"length": min(sample.length, LABEL_TOKENS)}), 0)
    if one is None:
        return None
    vectors = labels * ENCODERS[network.encoder.model_type].sizes(network.encoder.config)[1]
    # as they are encoded, and in the order of the classes; the gradients of both are in the factor of activations
    return StepCost(LABEL_PASSES * labels * one.flops, min(labels, LABELS_AT_ONCE) * one.activations + 2 * vectors)


def _tokens(network: Transformers, sample: Input) -> tuple[int, int]:
    """Tokens of one sample, and the number of token embeddings."""
    if isinstance(sample, TextInput):
        return sample.length, sample.vocabulary
    if not isinstance(sample, ImageInput):
        raise ValueError("no network of the library takes tables")
    given = network.config.get("patch_size")
    patch = given if isinstance(given, int) and given > 0 else 16
    return (sample.height // patch) * (sample.width // patch) + 1, 0


def _is_dense(network: Network) -> bool:
    return isinstance(network, Mlp | Vit | TextTransformer | Transformers | DualEncoder | InpFormerNetwork)


def evaluated(job: JobSpec, held_out: int) -> int:
    """Samples of all evaluations of the job, including the one after training."""
    return held_out * (-(-job.recipe.epochs // job.evaluation.every_epochs) + 1)
