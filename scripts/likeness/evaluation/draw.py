"""Generated images, each a stored item: one more prompt, seed or checkpoint costs only its own images.

An image's key names all that it depends on: base model, LoRA file, strength, weights by block, prompt, seed, size,
steps, guidance, references. Matrix products round differently for other batch sizes, but for one batch size a sample's bits depend
neither on its place in the batch nor on its neighbours; so every batch is filled up to `batch_size`, and an image is
the same whichever others are drawn with it. Models are loaded at the first image that is missing.

Axes: B batch, L target tokens, T text tokens, D embedding width, C latent channels, H and W tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likeness.config.base import ModelSource
from likeness.config.evaluation import ScoreStage
from likeness.config.training import EncodeStage
from likeness.errors import UserError
from likeness.evaluation.pictures import png_bytes
from likeness.evaluation.prompts import GridPoint
from likeness.klein.diptych import diptych_caption, keep_left, right_of
from likeness.lease import device_of_job
from likeness.photos.images import ImageRef
from likeness.store import Store, item_key

if TYPE_CHECKING:
    import torch

    from likeness.klein.family import Layout
    from likeness.klein.load import BaseModel
    from likeness.lora.adapter import Lora
    from likeness.lora.dora import Dora
    from likeness.training.encode import SampleEncoder

VERSION = 1
STAGE = "generated-images"
FILE = "image.png"
DISTILLED_STEPS = 4
"""A distilled model was made for this number of denoising steps."""
CPU_FLOPS, GPU_FLOPS = 4e10, 2.5e14
"""Assumed speed of one CPU thread and of one GPU, in floating-point operations a second, for the estimate beforehand."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA on disk and the hash of its bytes."""

    path: Path
    sha256: str


Sample = Callable[..., "torch.Tensor"]
"""The sampler with everything but guidance and hooks given; returns latents_BLC."""

Weights = tuple[tuple[str, float], ...]
"""Blocks (`single.7`) with the weight at which a LoRA counts there, on top of its strength; other blocks count 1."""


@dataclass(frozen=True)
class Request:
    """One image: a point of the grid, drawn with a LoRA at a strength, or (None) by the bare base model."""

    point: GridPoint
    lora: LoraFile | None = None
    scale: float = 1.0
    weights: Weights = ()


class Drawer:
    """Draws with one base model; `draw` returns the sha256 of each image's PNG."""

    def __init__(
        self, stage: ScoreStage, store: Store, images: Mapping[str, ImageRef], model: ModelSource | None = None
    ) -> None:
        self.stage, self.store, self.images = stage, store, images
        self.model = model or stage.base_model
        self._encoders_loaded = 0

    @cached_property
    def fingerprint(self) -> str:
        """The base model's, found without loading torch where the model is a local folder."""
        return base_fingerprint(self.model, self.stage.offline)

    @property
    def models_loaded(self) -> int:
        """How many models were loaded: encoders, and transformer and VAE to draw with."""
        drawing = vars(self._base) if "_base" in vars(self) else {}
        return self._encoders_loaded + sum(part in drawing for part in ("transformer", "vae"))

    @cached_property
    def is_distilled(self) -> bool:
        return bool(read_config(self._folder / "model_index.json").get("is_distilled", False))

    @property
    def _folder(self) -> Path:
        local = Path(self.model.source).expanduser()
        return local if local.is_dir() else self._base.folder

    @cached_property
    def token_px(self) -> int:
        """Pixels along one side of a token."""
        return 2 * 2 ** (len(read_config(self._folder / "vae" / "config.json")["block_out_channels"]) - 1)

    @cached_property
    def layout(self) -> Layout:
        """The transformer's layout, from its config file alone."""
        from likeness.klein.family import layout_of

        return layout_of(read_config(self._folder / "transformer" / "config.json"))

    @property
    def steps(self) -> int:
        return (
            min(DISTILLED_STEPS, self.stage.evaluation.sampling_steps)
            if self.is_distilled
            else self.stage.evaluation.sampling_steps
        )

    @property
    def guidance(self) -> float:
        return 1.0 if self.is_distilled else self.stage.evaluation.guidance_scale

    @property
    def reference_pixels(self) -> int | None:
        """Cap on a reference's area in px, as in training."""
        side_px = self.stage.buckets.reference_resolution_px
        return side_px**2 if side_px else None

    def key(self, request: Request) -> str:
        """The item's key."""
        point = request.point
        settings = {
            "steps": self.steps,
            "guidance": self.guidance,
            "precision": self.stage.evaluation.precision,
            "reference_pixels": self.reference_pixels if point.reference_sha256s else None,
        }
        content = {
            "lora": request.lora.sha256 if request.lora else "",
            "scale": request.scale if request.lora else 0.0,
            "prompt": point.prompt,
            "seed": point.seed,
            "size_px": [point.width_px, point.height_px],
            "references": list(point.reference_sha256s),
        }
        if request.weights:
            content["weights"] = dict(request.weights)
        if self.is_diptych(point):
            content["diptych"] = True
        return item_key(STAGE, VERSION, settings, self.fingerprint, content)

    def is_diptych(self, point: GridPoint) -> bool:
        """Whether a point is drawn as the right half of a diptych, whose left half is the source."""
        return self.stage.buckets.diptych and bool(point.reference_sha256s)

    def said(self, point: GridPoint) -> str:
        """The prompt that is encoded."""
        return diptych_caption(point.prompt) if self.is_diptych(point) else point.prompt

    def draw(self, requests: Sequence[Request]) -> dict[Request, str]:
        """Draw what the store lacks, one LoRA after the other, and return the images' sha256 by request."""
        found: dict[Request, str] = {}
        missing: list[Request] = []
        for request in dict.fromkeys(requests):
            item = self.store.load(STAGE, self.key(request))
            if item is None:
                missing.append(request)
            else:
                self.store.reused[STAGE] += 1
                found[request] = item.files[FILE]
        if missing:
            found |= self._draw_missing(missing)
        return found

    def _draw_missing(self, missing: Sequence[Request]) -> dict[Request, str]:
        from tqdm import tqdm

        print(self.estimate(len(missing), missing[0].point), flush=True)
        inputs = self._encode(missing)
        found: dict[Request, str] = {}
        groups: dict[Any, list[Request]] = {}
        for request in missing:
            groups.setdefault((request.lora, request.scale, request.weights), []).append(request)
        with tqdm(total=len(missing), unit="image", desc="drawing", mininterval=5) as progress:
            for (lora, scale, weights), own in groups.items():
                with self._adapters(lora, scale, weights):
                    for batch in self._batches(own, inputs):
                        found |= self._draw_batch(batch, inputs)
                        progress.update(len(batch))
        return found

    def estimate(self, count: int, point: GridPoint) -> str:
        """One line: how many images are to be drawn and about how many minutes that takes (assumed speed of the device)."""
        from likeness.klein.family import linear_shapes

        parameters = sum(rows * columns for rows, columns in linear_shapes(self.layout).values())
        tokens = point.width_px * point.height_px // self.token_px**2 * (1 + len(point.reference_sha256s)) + 512
        passes = self.steps * (1 if self.guidance <= 1 else 2)
        on_gpu = device_of_job() != "cpu"
        seconds = (
            2 * parameters * tokens * passes / (GPU_FLOPS if on_gpu else CPU_FLOPS * self.stage.evaluation.cpu_threads)
        )
        minutes = max(1, round(count * seconds / 60))
        return (
            f"{count} images to draw, about {minutes} min on this {'GPU' if on_gpu else 'CPU'} "
            f"(assumed {seconds:.2g} s an image)"
        )

    @cached_property
    def _base(self) -> BaseModel:
        from likeness.training.base import open_base

        return open_base(self.model, offline=self.stage.offline, dtype=self.stage.evaluation.precision, on_gpu=True)

    def _encode(self, requests: Sequence[Request]) -> Inputs:
        """Text embeddings and reference latents of all requests, items that training shares; encoders are freed after."""
        from likeness.training.encode import SampleEncoder

        stage = EncodeStage(
            base_model=self.model,
            buckets=(self.stage.buckets,),
            mask_kind=None,
            unmasked_weights=(),
            offline=self.stage.offline,
        )
        encoder = SampleEncoder(stage, self.store, self.images)
        points = dict.fromkeys(request.point for request in requests)
        references = dict.fromkeys(
            sha for point in points for sha in point.reference_sha256s if not self.is_diptych(point)
        )
        latents = {sha: encoder.reference(encoder.image_of(sha), self.reference_pixels) for sha in references}
        latents |= {
            source_key(point): encoder.target(
                encoder.image_of(point.reference_sha256s[0]), (point.width_px, point.height_px)
            )
            for point in points
            if self.is_diptych(point)
        }
        encoder.release_vae()
        prompts = dict.fromkeys(["", *map(self.said, points)])
        embeddings = {prompt: encoder.embedding(prompt) for prompt in prompts}
        release_text_encoder(encoder)
        self._encoders_loaded += encoder.models_loaded
        return Inputs(self.store, embeddings, latents)

    def _adapters(self, lora: LoraFile | None, scale: float, weights: Weights) -> AbstractContextManager[None]:
        """What the transformer wears while the images of one group are drawn."""
        return adapter_on(self._base, lora, scale, weights)

    def _batches(self, requests: Sequence[Request], inputs: Inputs) -> Iterator[list[Request]]:
        """Requests that can share a batch (equal sizes of the image and of all references), in order."""
        groups: dict[Any, list[Request]] = {}
        for request in requests:
            beside = [] if self.is_diptych(request.point) else inputs.references(request.point)
            shapes = tuple(tuple(latents.shape) for latents in beside)
            groups.setdefault((request.point.width_px, request.point.height_px, shapes), []).append(request)
        size = self.stage.evaluation.batch_size
        for group in groups.values():
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _draw_batch(self, batch: Sequence[Request], inputs: Inputs) -> dict[Request, str]:
        filled = [*batch, *[batch[-1]] * (self.stage.evaluation.batch_size - len(batch))]
        images = self._sample([request.point for request in filled], inputs)
        found: dict[Request, str] = {}
        for request, image_HWC in zip(batch, images, strict=False):
            self.store.computed[STAGE] += 1
            item = self.store.save(STAGE, self.key(request), {}, {FILE: png_bytes(image_HWC)})
            found[request] = item.files[FILE]
        return found

    def _sample(self, points: Sequence[GridPoint], inputs: Inputs) -> list[Any]:
        """Draw points of one size: a list of image_HWC, uint8 RGB."""
        import torch

        from likeness.klein.latents import decode_latents, unpack
        from likeness.klein.sample import initial_noise, sample_images

        width_px, height_px = points[0].width_px, points[0].height_px
        if width_px % self.token_px or height_px % self.token_px:
            raise UserError(
                f"evaluation.width_px, height_px: {width_px}×{height_px} px are not whole tokens of {self.token_px} px. "
                "Take multiples of it."
            )
        diptych = self.is_diptych(points[0])
        width_px *= 2 if diptych else 1
        rows, columns = height_px // self.token_px, width_px // self.token_px
        channels = int(self._base.transformer.config["in_channels"])
        noise = [initial_noise(point.seed, point.noise_key, (rows * columns, channels)) for point in points]
        device, dtype = self._base.device, self._base.dtype
        embeddings_BTD = torch.stack([inputs.embedding(self.said(point)) for point in points]).to(device, dtype)
        noise_BLC = torch.stack(noise).to(device)
        hooks = {}
        if diptych:
            sources_BCHW = torch.stack([inputs.source(point) for point in points]).to(device)
            hooks["on_step_end"] = keep_left(sources_BCHW, noise_BLC)
        sample = partial(
            sample_images,
            self._base,
            self._base.scheduler,
            embeddings_BTD,
            inputs.embedding("")[None].to(device, dtype),
            noise_BLC,
            height_px,
            width_px,
            [inputs.references(point) for point in points] if points[0].reference_sha256s and not diptych else None,
            num_inference_steps=self.steps,
            **hooks,
        )
        latents_BCHW = unpack(self._latents(sample, points, (rows, columns)), rows, columns)
        images_BCHW = decode_latents(self._base.vae, latents_BCHW).float()
        images_BCHW = right_of(images_BCHW) if diptych else images_BCHW
        pixels_BHWC = ((images_BCHW / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return list(pixels_BHWC.cpu().numpy())

    def _latents(self, sample: Sample, points: Sequence[GridPoint], grid: tuple[int, int]) -> torch.Tensor:
        """Run the sampler for points of one grid (rows, columns in tokens): latents_BLC."""
        return sample(guidance_scale=self.guidance)


class Inputs:
    """Text embeddings and reference latents by what they were made of, read from the store at first use."""

    def __init__(self, store: Store, embeddings: Mapping[str, str], latents: Mapping[str, str]) -> None:
        self._store, self._embeddings, self._latents = store, embeddings, latents
        self._read: dict[str, torch.Tensor] = {}

    def embedding(self, prompt: str) -> torch.Tensor:
        """Embedding_TD of a prompt."""
        return self._tensor(self._embeddings[prompt])

    def references(self, point: GridPoint) -> list[torch.Tensor]:
        """Latents_CHW of a point's references, in order."""
        return [self._tensor(self._latents[sha256]) for sha256 in point.reference_sha256s]

    def source(self, point: GridPoint) -> torch.Tensor:
        """Latents_CHW of a diptych's left half."""
        return self._tensor(self._latents[source_key(point)])

    def _tensor(self, sha256: str) -> torch.Tensor:
        from likeness.training.encode import read_tensors

        if sha256 not in self._read:
            self._read |= read_tensors(self._store, [sha256])
        return self._read[sha256]


def source_key(point: GridPoint) -> str:
    """What the left half of a point's diptych is made of: the source at the size that is drawn."""
    return f"{point.reference_sha256s[0]} {point.width_px}x{point.height_px}"


def release_text_encoder(encoder: SampleEncoder) -> None:
    """Free the text encoder before the transformer is loaded."""
    if "text_base" in vars(encoder):
        encoder.text_base.release("text_encoder")


@contextmanager
def adapter_on(base: BaseModel, lora: LoraFile | None, scale: float, weights: Weights = ()) -> Iterator[None]:
    """Put a LoRA on the loaded transformer at a strength, with weights by block, and take it off again.

    Raises UserError for a file whose bytes changed, that does not fit the model, or of which not every module arrives.
    """
    if lora is None:
        yield
        return
    from likeness.lora.dora import is_dora
    from likeness.lora.runtime import adapters_on, block_weights, set_weights

    check_bytes(lora)
    dora = is_dora(lora.path)
    if dora and weights:
        raise UserError(
            f"{lora.path}: it is a DoRA, whose blocks cannot be weighted: weight 0 would not be the bare model."
        )
    found = dora_of(lora, base.layout) if dora else read_checked(lora, base.layout)
    with adapters_on(base.transformer, {"scored": found}, str(lora.path)):
        set_weights(base.transformer, "scored", block_weights(dict(weights), scale))
        yield


def read_checked(lora: LoraFile, layout: Layout) -> Lora:
    """Read a LoRA for a model; UserError for a file that is gone, whose bytes changed, or that does not fit."""
    from likeness.lora.adapter import check_fits
    from likeness.lora.files import read_lora

    check_bytes(lora)
    found = read_lora(lora.path)
    check_fits(found, layout, str(lora.path))
    return found


def dora_of(lora: LoraFile, layout: Layout) -> Dora:
    """Read a DoRA for a model, likewise."""
    from likeness.lora.adapter import check_fits
    from likeness.lora.dora import read_dora

    found = read_dora(lora.path)
    check_fits(found.lora, layout, str(lora.path))
    return found


def check_bytes(lora: LoraFile) -> None:
    """UserError for a LoRA file that is gone, or whose bytes changed."""
    from likeness.lora.files import sha256_of

    if not lora.path.is_file():
        raise UserError(
            f"the LoRA with sha256 {lora.sha256[:12]}… is neither at its place nor in the store ({lora.path}). "
            "Delete its steps.json and run again: training restores it."
        )
    if sha256_of(lora.path) != lora.sha256:
        raise UserError(
            f"{lora.path}: its bytes are not those that steps.json lists. Run the training's command again."
        )


def base_fingerprint(model: ModelSource, offline: bool) -> str:
    """The base model's fingerprint, as klein.load gives it; a local folder needs no torch for it."""
    folder = Path(model.source).expanduser()
    if folder.is_dir() and model.sha256 is None:
        from likeness.klein.fingerprint import folder_fingerprint

        return folder_fingerprint(folder)
    from likeness.training.base import open_base

    return open_base(model, offline=offline).fingerprint


def read_config(path: Path) -> dict[str, Any]:
    """Read one of a model's JSON files; UserError where it is absent."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError:
        raise UserError(f"base_model: {path} is missing. Put the whole checkpoint in diffusers layout there.") from None
