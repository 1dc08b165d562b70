"""Hard patches mining: masked images whose hardest patches are masked more and more often (arXiv 2304.05919)."""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from app.recipe.cost import as_image
from app.recipe.methods.base import FIELD, LEARNING
from app.recipe.methods.hpm import Hpm
from app.recipe.students.architectures import Vit
from worker.data.batches import Batch
from worker.data.randomness import derive_seed, generator
from worker.errors import UserError
from worker.losses.objective import TOTAL
from worker.methods.base import Method
from worker.methods.hard_patches import (
    PatchMask,
    absolute_losses,
    choose_mask,
    hard_count,
    masked_count,
    of_patches,
    patch_losses,
    patch_pixels,
    relative_losses,
)
from worker.methods.patch_decoder import DecoderBranch, DecoderTokens, LossPredictor
from worker.students.measure import example
from worker.students.vit import VitNetwork
from worker.tensors import at_least_float32
from worker.training.ema import move_towards
from worker.training.loop import GRAD_NORM, Stage, Step, accumulate_gradients, update_student
from worker.training.measure import flops
from worker.training.state import MethodState, TrainState
from worker.training.step_inputs import Signals, StepInputs

RECONSTRUCTION, PREDICTION = f"{TOTAL}/reconstruction", f"{TOTAL}/prediction"
ORDERED, HARD, DECAY = "ordered_share", "hard_share", "average_decay"
"""Metrics beside the two losses: the share of the pairs of `relative_losses` whose predictions have the right order,
the share of the masked patches that are the hardest, and the decay of the moving average."""
TOKENS, RECONSTRUCTOR, PREDICTOR, AVERAGE = "hpm-tokens", "hpm-reconstructor", "hpm-predictor", "hpm-average"


class HpmState(MethodState):
    """Counters."""

    predicted: int = 0
    """Images on which the moving average was run."""


class _Operations(NamedTuple):
    """Floating-point operations of forward passes on one image."""

    encoder: int
    """Of the student on its visible patches."""
    decoders: int
    average: int


class HpmMethod(Method[Hpm]):
    """See `Hpm`."""

    State = HpmState

    def modules(self) -> dict[str, nn.Module]:
        """What the decoders have in common, and the two decoders. Raises UserError (`invalid_job`) for images of too
        few patches."""
        patches = self._network.patches
        masked = masked_count(patches, self.spec.mask_ratio)
        if not 1 < masked < patches:
            found = f"{masked} of the {patches} patches of an image would be masked"
            accepted = "a ratio that masks two or more and leaves one, or smaller patches"
            field = f"{FIELD}.mask_ratio"
            raise UserError("invalid_job", f"{field}: {found}; accepted: {accepted}", field)
        student, reconstructor = self._learning
        return {TOKENS: student.tokens, RECONSTRUCTOR: reconstructor, PREDICTOR: student.predictor}

    def untrained_modules(self) -> dict[str, nn.Module]:
        return {AVERAGE: self._average}

    def step(self, stage: Stage, state: TrainState) -> Step:
        return HpmStep(self.spec, *self._learning, self._average)

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        each = self._operations
        return {
            "student": samples * LEARNING * (each.encoder - self.inputs.student_flops),
            "decoders": samples * LEARNING * each.decoders,
            "average": _state(state).predicted * each.average,
        }

    @property
    def _network(self) -> VitNetwork:
        network = self.inputs.student.network
        assert isinstance(network, VitNetwork)  # by the contract
        return network

    @cached_property
    def _learning(self) -> tuple[LossPredictor, DecoderBranch]:
        """The student with the second decoder, and the first decoder."""
        config, network = self.inputs.student.config, self._network
        assert isinstance(config.architecture, Vit)
        image = as_image(config.input)
        blocks = self.spec.decoder.blocks_for(config.architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.inputs.seed, "hpm"))
            tokens = DecoderTokens(blocks.width, config.architecture.width, config.outputs, network.patches)
            pixels = network.embed.weight[0].numel()
            predictor, reconstructor = DecoderBranch(blocks, image, 1), DecoderBranch(blocks, image, pixels)
        return LossPredictor(network, tokens, predictor), reconstructor

    @cached_property
    def _average(self) -> LossPredictor:
        """On the device of the networks that it follows, so not made before these are there."""
        return deepcopy(self._learning[0]).requires_grad_(False).eval()

    @cached_property
    def _operations(self) -> _Operations:
        student, reconstructor = deepcopy(self._learning[0]).to("meta"), deepcopy(self._learning[1]).to("meta")
        patches = student.network.patches
        numbers = torch.zeros(1, patches, dtype=torch.int64, device="meta")
        visible = numbers[:, masked_count(patches, self.spec.mask_ratio) :]
        image = example(self.inputs.student.config.input).to("meta")
        tokens = torch.zeros(1, 1 + patches, student.tokens.positions.shape[-1], device="meta")
        encoder = flops(lambda images: student.network.encode(images, visible), image)
        inputs = flops(lambda images: student.decoder_inputs(images, visible), image) - encoder
        branches = flops(student.predict, tokens) + flops(reconstructor, tokens)
        return _Operations(encoder, inputs + branches, flops(lambda images: student(images, numbers), image))


class HpmStep:
    """One optimizer step on masked images. The masks of a step depend on the seed, on its number and on the predictions
    of the moving average."""

    def __init__(self, spec: Hpm, student: LossPredictor, reconstructor: DecoderBranch, average: LossPredictor) -> None:
        self._spec, self._student, self._reconstructor, self._average = spec, student, reconstructor, average

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        state.student.train()
        stage.ranks.begin_step(stage.seed, state.step)
        count, epoch = stage.count(step_inputs), int(stage.epoch_at(state.step))
        (batch,) = step_inputs.micro_batches  # the contract refuses several
        images = at_least_float32(state.student.normalized(batch.inputs[stage.input_key]))
        masked = masked_count(self._student.network.patches, self._spec.mask_ratio)
        hard = hard_count(masked, self._spec.hard_share, epoch, stage.plan.epochs)
        mask = self.mask(stage, state, images, masked, hard)

        def shares(number: int, micro_batch: Batch, signals: Signals) -> dict[str, Tensor]:
            return self._shares(stage, images, mask, count)

        values = accumulate_gradients(stage, stage.trainable, step_inputs, shares)
        values[GRAD_NORM] = update_student(stage, state)
        decay = self._decay(epoch)
        move_towards(self._average, self._student, 1 - decay)
        return values | {name: images.new_tensor(value) for name, value in ((HARD, hard / masked), (DECAY, decay))}

    @torch.no_grad()
    def mask(self, stage: Stage, state: TrainState, images: Tensor, masked: int, hard: int) -> PatchMask:
        """The mask of this process's `images` (N, C, H, W) in the next step, with `masked` patches of which `hard` are
        the hardest; without such ones the average is not run."""
        samples, patches = stage.batches.size_at(state.step), self._student.network.patches
        drawn = torch.rand(samples, patches, generator=generator(stage.seed, "masks", state.step))
        noise = stage.ranks.share(drawn).to(images.device)
        if hard == 0:
            return choose_mask(noise, noise, masked, hard)
        _state(state).predicted += samples
        everything = torch.arange(patches, device=images.device).expand(len(images), -1)
        with _autocast(stage):
            predicted = self._average(images, everything)
        return choose_mask(predicted, noise, masked, hard)

    def _shares(self, stage: Stage, images: Tensor, mask: PatchMask, count: Tensor) -> dict[str, Tensor]:
        """See `Shares`."""
        with _autocast(stage):
            tokens = self._student.decoder_inputs(images, mask.visible)
            pixels, predicted = self._reconstructor(tokens), self._student.predict(tokens)
        pixels, predicted = (of_patches(at_least_float32(values), mask.masked) for values in (pixels, predicted))
        given = of_patches(patch_pixels(images, self._student.network.side), mask.masked)
        losses = patch_losses(pixels, given, normalise=self._spec.normalise_pixels)
        reconstruction = losses.mean(1).sum() / count
        found = self._prediction(stage, predicted, losses.detach(), count)
        return {TOTAL: reconstruction + found[PREDICTION], RECONSTRUCTION: reconstruction, **found}

    def _prediction(self, stage: Stage, predicted: Tensor, losses: Tensor, count: Tensor) -> dict[str, Tensor]:
        """The loss of `predicted` losses of patches (N, M), and how well they are ordered."""
        relative = relative_losses(predicted, losses, stable=self._spec.stable)
        pairs = stage.ranks.sum(relative.pairs).clamp(min=1)
        loss = relative.loss / pairs
        if self._spec.prediction == "absolute":
            loss = absolute_losses(predicted, losses).mean(1).sum() / count
        return {PREDICTION: loss, ORDERED: (relative.ordered / pairs).to(loss.dtype)}

    def _decay(self, epoch: int) -> float:
        first, last = self._spec.decay, self._spec.final_decay
        return first + (last - first) * min(epoch / self._spec.decay_epochs, 1.0)


def _autocast(stage: Stage) -> torch.autocast:
    return torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.recipe.precision == "bf16")


def _state(state: TrainState) -> HpmState:
    assert isinstance(state.method, HpmState)
    return state.method
