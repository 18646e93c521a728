"""Images by several LoRAs at once: all of them in full, K-LoRA's choice by layer and step, or each within its mask.

A drawer like any other: where a request has a LoRA, the others of the mixture are there as well; a request without one
is drawn by the bare base. Images are items of the store, keyed by all LoRAs and by how they are mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from likeness.config.evaluation import ScoreStage
from likeness.errors import UserError
from likeness.evaluation.draw import Drawer, LoraFile, Request, Sample, Weights, read_checked
from likeness.evaluation.prompts import GridPoint
from likeness.photos.images import ImageRef
from likeness.store import Store, item_key

if TYPE_CHECKING:
    import torch

VERSION = 1
Method = Literal["sum", "k-lora", "masked"]


@dataclass(frozen=True)
class Mixture:
    """LoRAs that are used together with a request's own, and how.

    sum: all in full. k-lora: the request's is the content and the one other is the style, or the other way round where
    `own_is_style`. masked: each within the place of its word; `words` holds the request's own first, then one for each
    other.
    """

    method: Method
    others: tuple[LoraFile, ...]
    words: tuple[str, ...] = ()
    own_is_style: bool = False

    def __post_init__(self) -> None:
        if self.method == "k-lora" and len(self.others) != 1:
            raise UserError("k-lora mixes exactly one content with one style LoRA. Give one other LoRA.")
        if self.method == "masked" and len(self.words) != 1 + len(self.others):
            raise UserError(
                f"masked mixing needs one word for each LoRA to find its place: {len(self.words)} for "
                f"{1 + len(self.others)} LoRAs."
            )


class MixtureDrawer(Drawer):
    """Draws requests with all LoRAs of a mixture."""

    def __init__(self, stage: ScoreStage, store: Store, images: Mapping[str, ImageRef], mixture: Mixture) -> None:
        super().__init__(stage, store, images)
        self.mixture = mixture
        self._hook: Any = None
        self._scales: dict[str, float] = {}

    def key(self, request: Request) -> str:
        own = super().key(request)
        if request.lora is None:
            return own
        others = [other.sha256 for other in self.mixture.others]
        roles = {"masked": list(self.mixture.words), "k-lora": ["style"] if self.mixture.own_is_style else []}
        return item_key("mixed", VERSION, self.mixture.method, own, [others, roles.get(self.mixture.method, [])])

    @contextmanager
    def _adapters(self, lora: LoraFile | None, scale: float, weights: Weights) -> Iterator[None]:
        if lora is None:
            yield
            return
        from likeness.lora.klora import klora_hook, klora_table
        from likeness.lora.runtime import adapters_on, block_weights, set_weights

        files = [lora, *self.mixture.others]
        loras = {f"lora{place}": read_checked(file, self._base.layout) for place, file in enumerate(files)}
        transformer, names = self._base.transformer, list(loras)
        with adapters_on(transformer, loras, ", ".join(file.path.name for file in files)):
            self._scales = {name: scale if name == names[0] else 1.0 for name in names}
            set_weights(transformer, names[0], block_weights(dict(weights), scale))
            if self.mixture.method == "k-lora":
                content, style = reversed(names) if self.mixture.own_is_style else names
                table = klora_table(loras[content], loras[style], self.steps)
                self._hook = klora_hook(transformer, content, style, table, self._scales)
            try:
                yield
            finally:
                self._hook, self._scales = None, {}

    def _latents(self, sample: Sample, points: Sequence[GridPoint], grid: tuple[int, int]) -> torch.Tensor:
        if self.mixture.method != "masked" or not self._scales:
            return sample(guidance_scale=self.guidance, on_step_start=self._hook)
        from likeness.lora.masked import blended

        masks_BCL = self._masks(sample, points, grid)
        text_tokens = self._base.max_text_tokens
        with blended(self._base.transformer, masks_BCL, self._scales, text_tokens):
            return sample(guidance_scale=self.guidance)

    def _masks(self, sample: Sample, points: Sequence[GridPoint], grid: tuple[int, int]) -> torch.Tensor:
        """Where the bare base would put each word's subject, from its attention over a whole run without guidance."""
        import torch

        from likeness.klein.text import word_tokens
        from likeness.lora.masked import AttentionPrior, masks_of
        from likeness.lora.runtime import set_weights

        transformer = self._base.transformer
        for name in self._scales:
            set_weights(transformer, name, lambda _: 0.0)
        words_BCT = torch.stack(
            [
                torch.stack([word_tokens(self._base, point.prompt, word) for word in self.mixture.words])
                for point in points
            ]
        )
        with AttentionPrior(transformer, words_BCT.to(self._base.device), grid[0] * grid[1]) as prior:
            sample(guidance_scale=1.0)
        return masks_of(prior.prior_BCL, grid)
