"""How fast a training step is on this machine, as a fraction of what the machine could do.

Models have their full size and random weights, so nothing is downloaded. Beside the trainer's step, the step of the
diffusers example script runs on the same model, adapter and tokens. The floor is what the step's products of matrices
and attentions would take at the machine's own measured peak; see `flops.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import KLEIN_4B, KLEIN_9B, MAX_TEXT_TOKENS, layout_of, token_px, transformer_config
from likeness.training.adapter import add_adapter
from likeness.training.arithmetic import choose_arithmetic, leave_arithmetic
from likeness.training.data import Sample, TrainingData
from likeness.training.flops import StepFlops, step_flops
from likeness.training.frozen import (
    FIRST_WITH_FLOAT8,
    FLOAT8,
    check_kind,
    hold_in_main_memory,
    multiply,
    quantise,
    row_scales,
    stored_values,
)
from likeness.training.loop import Training, train
from likeness.training.memory import free_memory
from likeness.training.optimizers import make_optimizer
from likeness.training.self_test import exchange_checked
from likeness.training.shape import shape_adapter
from likeness.training.speed import speed_up

MINIATURE = "miniature"
SAMPLES = 4
logger = logging.getLogger(__name__)
SCHEDULER = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


class Model(NamedTuple):
    """What a model is made from: its config, text tokens, px a token, and the type it is computed in."""

    config: dict[str, Any]
    text_tokens: int
    token_px: int
    dtype: str


MODELS = {
    "4b": Model(transformer_config(KLEIN_4B), MAX_TEXT_TOKENS, 16, "bfloat16"),
    "9b": Model(transformer_config(KLEIN_9B), MAX_TEXT_TOKENS, 16, "bfloat16"),
    MINIATURE: Model(
        {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 96,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": (8, 8, 8, 8),
            "guidance_embeds": False,
        },
        32,
        2,
        "float32",
    ),
}


@dataclass(frozen=True)
class Case:
    """One row of the table: what is trained, on what, and by whose step."""

    model: str
    resolution_px: int
    references: int = 0
    reference_px: int = 1024
    targets: str = "all_blocks"
    rank: int = 32
    precision: str = "bf16"
    compiled: bool = False
    recomputed: bool = False
    identity: bool = False
    step: str = "likeness"

    @property
    def settings(self) -> TrainingSettings:
        """The training settings of the case."""
        precision = {"bf16": "full", "fp8": "fp8_matmul"}.get(self.precision, self.precision)
        values = {"rank": self.rank, "targets": self.targets, "base_precision": precision, "compile": self.compiled}
        values |= {"gradient_checkpointing": self.recomputed, "steps": 100_000, "caption_dropout": 0.0}
        return TrainingSettings.model_validate(values | {"precision": MODELS[self.model].dtype})

    @property
    def image_tokens(self) -> int:
        """Tokens of the target and of all references."""
        return (
            grid_of(self.resolution_px, self.model) ** 2 + self.references * grid_of(self.reference_px, self.model) ** 2
        )

    @property
    def flops(self) -> StepFlops:
        """Operations of a step; what is recomputed is none of the work that must be done."""
        layout = layout_of(MODELS[self.model].config)
        ranks = {name: one.rank for name, one in shape_adapter(self.settings, layout).items()}
        return step_flops(layout, ranks, self.image_tokens, MODELS[self.model].text_tokens)


@dataclass(frozen=True)
class Result:
    """What was measured of a case; None where it was not, with the reason in `note`."""

    case: Case
    seconds: float | None = None
    tokens_a_second: float | None = None
    peak_gib: float | None = None
    floor_s: float | None = None
    fraction_of_floor: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Peaks:
    """Operations a second that the machine's own products of large matrices reach; None for fp8 where it has none."""

    bf16: float
    fp8: float | None
    device: str
    versions: dict[str, str] = field(default_factory=dict)


def grid_of(side_px: int, model: str) -> int:
    """Tokens along one side of a square picture."""
    return max(1, side_px // MODELS[model].token_px)


def device_for(model: str) -> torch.device:
    """Where a model is measured; UserError where that needs a GPU and there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if model == MINIATURE:
        return torch.device("cpu")
    raise UserError(
        f"--model {model}: a step of klein {model} needs a CUDA GPU, and torch finds none here. "
        "`--model miniature` takes the same way on the CPU, and its figures say nothing about GPUs."
    )


def measure_peaks(device: torch.device, side: int | None = None, rounds: int = 10) -> Peaks:
    """Time products of square matrices in bfloat16, and in float8 where the GPU multiplies it."""
    side = side or (8192 if device.type == "cuda" else 512)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    operations = 2 * side**3
    bf16 = operations / best_seconds(lambda: left @ right, device, rounds)
    fp8 = None
    if device.type == "cpu" or torch.cuda.get_device_capability(device) >= FIRST_WITH_FLOAT8:
        # Bringing the input to 8 bits is the trainer's own work, not what the machine could do.
        (left, of_left), (right, of_right) = (in_float8(one) for one in (left, right))
        fp8 = operations / best_seconds(lambda: multiply(left, of_left, right.t(), of_right[:, 0]), device, rounds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Peaks(bf16, fp8, name, versions())


def in_float8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in float8, and the scales of its rows."""
    scale = row_scales(matrix, FLOAT8, torch.float32)
    return stored_values(matrix, scale, FLOAT8), scale


def versions() -> dict[str, str]:
    """Versions of the libraries that decide speed."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "diffusers", "peft")}


def best_seconds(work: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """The shortest of several runs, after two that do not count."""
    times = []
    for turn in range(rounds + 2):
        started_s = now_s(device)
        work()
        if turn >= 2:
            times.append(now_s(device) - started_s)
    return min(times)


def now_s(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def cases_of(model: str, resolution_px: int | None, references: int | None, precision: str | None) -> list[Case]:
    """The table: around 1024 px without references, one thing changed at a time; what is given is kept in every row.

    References are never larger than the target. The example's base is never quantised: our layers would be its own.
    """
    plain = Case(model, resolution_px or 1024, references or 0, precision=precision or "bf16")
    plain = dataclasses.replace(plain, reference_px=min(1024, plain.resolution_px))
    change = dataclasses.replace
    example = change(plain, step="example", precision="bf16")
    ways: tuple[dict[str, bool], ...] = ({}, {"compiled": True}, {"recomputed": True})
    found = [*(change(plain, **way) for way in ways), example]
    if precision is None:
        found += [change(plain, precision=one, **way) for one in ("int8", "fp8") for way in ways]
    if resolution_px is None:
        found += [change(case, resolution_px=side_px) for side_px in (512, 768) for case in (plain, example)]
    if references is None:
        sides_px = sorted({min(side_px, plain.resolution_px) for side_px in (512, 1024)})
        found += [change(plain, references=n, reference_px=side_px) for n in (1, 2, 3, 4) for side_px in sides_px]
    presets = ("double_attn", "double_all", "single_in", "single_all", "attention", "image_stream")
    return [*found, *[change(plain, targets=one) for one in presets], change(plain, identity=True)]


def measure(cases: list[Case], peaks: Peaks, steps: int) -> Iterator[Result]:
    """Measure one case after the other; one that does not fit into memory, or fails otherwise, is a row that says so."""
    device = device_for(cases[0].model)
    for case in cases:
        try:
            yield measure_case(case, peaks, steps, device)
        except torch.OutOfMemoryError:
            yield Result(case, note="out of memory")
        except UserError as error:
            yield Result(case, note=str(error))
        except Exception as error:
            # The other rows are worth having: a compiler, a library or a kernel may be missing for this one alone.
            logger.warning("%s", case, exc_info=True)
            yield Result(case, note=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        free_memory()


def measure_case(case: Case, peaks: Peaks, steps: int, device: torch.device) -> Result:
    """Time the steps of one case after those that warm up, on a model of its own."""
    if case.step == "example":
        leave_arithmetic()
    else:
        choose_arithmetic(case.settings.precision, with_pictures=case.identity)
    training = build_training(case, device)
    run = example_steps(training) if case.step == "example" else trainer_steps(training)
    run(5 if case.compiled else 2)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(steps):
        started_s = now_s(device)
        run(1)
        times.append(now_s(device) - started_s)
    seconds = statistics.median(times)
    floor_s = case.flops.floor_s(peaks.bf16, peaks.fp8 if case.precision == "fp8" else None)
    peak_gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    tokens = case.image_tokens + MODELS[case.model].text_tokens
    note = "backed off: blocks are recomputed" if training.back_off.every and not case.recomputed else ""
    return Result(case, seconds, tokens / seconds, peak_gib, floor_s, floor_s / seconds, note)


def build_training(case: Case, device: torch.device) -> Training:
    """A training of the case's size, of random weights and samples."""
    settings, model = case.settings, MODELS[case.model]
    layout = layout_of(model.config)
    is_quantised = settings.base_precision != "full"
    transformer = random_transformer(model, device, torch.device("cpu") if is_quantised else device)
    if is_quantised:
        # As the trainer loads it: the whole is never on the device.
        hold_in_main_memory(transformer, device, pinned=False)
    weights = add_adapter(transformer, settings, layout)
    optimizer = make_optimizer(weights.values(), settings.optimizer)
    data = random_data(case, device)
    training = Training(transformer, weights, optimizer, data, settings, SCHEDULER, layout)
    if is_quantised:
        check_kind(settings.base_precision, device)
        with contextlib.redirect_stdout(sys.stderr):
            exchange_checked(training, lambda: quantise(transformer, settings.base_precision), settings.base_precision)
    if case.identity:
        add_identity_loss(training, case)
    speed_up(transformer, settings)
    return training


def random_transformer(model: Model, device: torch.device, place: torch.device) -> Any:
    """A transformer of its full size with random weights, which are drawn on the device and lie in `place`."""
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, model.dtype))
    try:
        with torch.device("meta"):
            transformer = Flux2Transformer2DModel(**model.config)
    finally:
        torch.set_default_dtype(usual)
    transformer = transformer.to_empty(device=place).requires_grad_(False).eval()
    torch.manual_seed(0)
    for parameter in transformer.parameters():
        if parameter.ndim == 2:
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            parameter.copy_(drawn.normal_(std=parameter.shape[1] ** -0.5))
        else:
            parameter.fill_(1.0)
    return transformer


def random_data(case: Case, device: torch.device) -> TrainingData:
    """Random samples in main memory, of the case's size."""
    model = MODELS[case.model]
    channels, dtype = model.config["in_channels"], getattr(torch, model.dtype)
    side, of_reference = grid_of(case.resolution_px, case.model), grid_of(case.reference_px, case.model)
    group = ((side, side), ((of_reference, of_reference),) * case.references)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    texts = [normal(model.text_tokens, model.config["joint_attention_dim"]).to(dtype) for _ in range(SAMPLES + 1)]
    ones = torch.ones(side**2)
    samples = {}
    for place in range(SAMPLES):
        references = normal(case.references * of_reference**2, channels)
        name = f"{place:064x}"
        samples[name] = Sample(name, 1, group, normal(side**2, channels), references, texts[place], ones, 1 - ones)
    return TrainingData(samples, texts[-1], device)


def trainer_steps(training: Training) -> Callable[[int], None]:
    """The trainer's own loop, a number of steps at a time."""

    def run(count: int) -> None:
        train(training, training.step + count, lambda _: None)

    return run


def example_steps(training: Training) -> Callable[[int], None]:
    """The step of the diffusers example script (examples/dreambooth/train_dreambooth_lora_flux2_klein.py), on the same model.

    Noise and level are drawn on the device, the adapter is in the base's type under autocast, the optimizer is torch's
    AdamW as it is, and the loss is read back after every step, all as there.
    """
    device, dtype = training.data.device, training.transformer.dtype
    parameters = [weight for weight in training.weights.values() if weight.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4)
    batches = [training.data.batch([name], [False]) for name in training.data.samples]
    done = [0]

    def step() -> None:
        batch = batches[done[0] % len(batches)]
        clean, done[0] = batch.latents_BLC.to(dtype), done[0] + 1
        noise = torch.randn_like(clean)
        sigma = torch.rand(len(clean), device=device, dtype=dtype)
        noisy = (1.0 - sigma[:, None, None]) * clean + sigma[:, None, None] * noise
        tokens, ids = noisy, batch.target_ids
        if batch.reference_BRC is not None and batch.reference_ids is not None:
            tokens, ids = (
                torch.cat([noisy, batch.reference_BRC.to(dtype)], dim=1),
                torch.cat([ids, batch.reference_ids]),
            )
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            predicted = training.transformer(
                hidden_states=tokens,
                timestep=sigma,
                guidance=None,
                encoder_hidden_states=batch.embeddings_BTD,
                txt_ids=batch.text_ids,
                img_ids=ids,
                return_dict=False,
            )[0][:, : noisy.shape[1]]
        loss = ((predicted.float() - (noise - clean).float()) ** 2).reshape(len(clean), -1).mean(dim=1).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    def run(count: int) -> None:
        for _ in range(count):
            step()

    return run


def add_identity_loss(training: Training, case: Case) -> None:
    """Add the identity loss with a VAE of random weights and a ResNet-50 at 112 px, about the cost of a common recogniser."""
    from likeness.config.losses import IdentitySettings
    from likeness.training.losses.identity import IdentityLoss, Recogniser, locate
    from likeness.training.losses.objective import Objective, Term

    device = training.data.device
    vae, side_px = random_vae(case, device), 112
    recogniser = Recogniser(random_recogniser(case, device), side_px, 127.5, 127.5)
    settings = IdentitySettings.model_validate({"model": "random weights", "min_similarity": -1.0, "sigma_max": 1.0})
    side = grid_of(case.resolution_px, case.model)
    face = locate(landmarks_in(case.resolution_px), (side, side), side_px, token_px(dict(vae.config)))
    faces = dict.fromkeys(training.data.samples, face)
    target_D = nn.functional.normalize(torch.randn(512, device=device), dim=0)
    loss = IdentityLoss(settings, vae, recogniser, faces, dict.fromkeys(faces, target_D))
    training.objective = Objective((*training.objective.terms, Term("identity", settings, loss)))


def landmarks_in(side_px: int) -> Any:
    """Five points of a face that fills a third of a square picture."""
    import numpy as np

    shares = np.array([[0.42, 0.45], [0.58, 0.45], [0.5, 0.53], [0.44, 0.61], [0.56, 0.61]])
    return shares * side_px


def random_vae(case: Case, device: torch.device) -> Any:
    """A VAE of full size with random weights, in the model's type; a small one for the miniature."""
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

    small = {"block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",), "latent_channels": 4}
    small |= {"up_block_types": ("UpDecoderBlock2D",), "layers_per_block": 1, "norm_num_groups": 4}
    vae: Any = AutoencoderKLFlux2(**(small if case.model == MINIATURE else {}))
    return vae.to(device=device, dtype=getattr(torch, MODELS[case.model].dtype)).requires_grad_(False).eval()


def random_recogniser(case: Case, device: torch.device) -> nn.Module:
    """A network about as costly as a common recogniser; a small one for the miniature."""
    if case.model == MINIATURE:
        network: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 512))
    else:
        from torchvision.models import resnet50

        network = resnet50(weights=None, num_classes=512)
    return network.to(device).requires_grad_(False).eval()


def as_record(peaks: Peaks, results: list[Result]) -> dict[str, Any]:
    """Everything measured, as JSON holds it."""
    return {"peaks": dataclasses.asdict(peaks), "rows": [dataclasses.asdict(one) for one in results]}


HEADER = (
    "model",
    "px",
    "references",
    "targets",
    "base",
    "step",
    "s/step",
    "tokens/s",
    "peak GiB",
    "floor s",
    "of the floor",
    "",
)


def as_row(result: Result) -> tuple[str, ...]:
    """One result as cells of the table; what was not measured stays empty."""
    case = result.case
    extras = [name for name in ("compiled", "recomputed", "identity") if getattr(case, name)]
    references = f"{case.references} × {case.reference_px}" if case.references else "0"
    numbers = (
        (result.seconds, "{:.3f}"),
        (result.tokens_a_second, "{:,.0f}"),
        (result.peak_gib, "{:.1f}"),
        (result.floor_s, "{:.3f}"),
        (result.fraction_of_floor, "{:.0%}"),
    )
    cells = [form.format(value) if value is not None else "" for value, form in numbers]
    step = ", ".join([case.step, *extras])
    return (case.model, str(case.resolution_px), references, case.targets, case.precision, step, *cells, result.note)
