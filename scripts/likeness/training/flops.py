"""How many floating-point operations a training step needs, from the layout alone: the floor that no code goes below.

A product of (M × K) and (K × N) counts 2·M·K·N. Of a frozen matrix the backward pass needs the gradient of its input
alone, and not even that where nothing before it is trained. Attention over T tokens of width d costs 4·T²·d forward and
10·T²·d backward (its scores are computed again: arXiv:2205.14135). What is no product of matrices is left out: it costs
bandwidth, which is why a step does not reach the floor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from likeness.klein.family import Layout, linear_shapes

ATTENTION_FORWARD, ATTENTION_BACKWARD = 4, 10
ONCE = ("time_guidance_embed", "double_stream_modulation", "single_stream_modulation", "norm_out")
"""Modules that see one vector a sample instead of all its tokens."""


@dataclass
class StepFlops:
    """Operations of one sample's step: products with the frozen base, products of the adapter, and attention."""

    base: int = 0
    adapter: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.base + self.adapter + self.attention

    def floor_s(self, peak: float, peak_of_base: float | None = None) -> float:
        """Seconds at `peak` operations a second, with another peak for the base's products (such as that of fp8)."""
        return self.base / (peak_of_base or peak) + (self.adapter + self.attention) / peak


@dataclass
class Counter:
    """Walks through a transformer in the order of its forward pass and adds up both passes."""

    layout: Layout
    ranks: Mapping[str, int]
    image_tokens: int
    text_tokens: int
    flops: StepFlops = field(default_factory=StepFlops)

    def __post_init__(self) -> None:
        self.shapes = linear_shapes(self.layout)

    def linear(self, name: str, tokens: int, input_needs: bool) -> bool:
        """Count a linear module; returns whether its output needs a gradient."""
        outputs, inputs = self.shapes[name]
        product = 2 * tokens * outputs * inputs
        self.flops.base += product * (2 if input_needs else 1)
        rank = self.ranks.get(name)
        if rank is None:
            return input_needs
        down, up = 2 * tokens * inputs * rank, 2 * tokens * outputs * rank
        # Forward, the gradients of both factors, that of the small vector between them, and that of the input.
        self.flops.adapter += 2 * down + 3 * up + (down if input_needs else 0)
        return True

    def attention(self, needs: bool) -> bool:
        """Count one attention over all tokens; returns whether its output needs a gradient."""
        square = (self.image_tokens + self.text_tokens) ** 2 * self.layout.width
        self.flops.attention += (ATTENTION_FORWARD + (ATTENTION_BACKWARD if needs else 0)) * square
        return needs

    def double_block(self, index: int, image: bool, text: bool) -> tuple[bool, bool]:
        """Count a double block; takes and returns whether image and text need a gradient."""
        block, image_tokens, text_tokens = f"transformer_blocks.{index}", self.image_tokens, self.text_tokens
        of_image = [self.linear(f"{block}.attn.{one}", image_tokens, image) for one in ("to_q", "to_k", "to_v")]
        of_text = [
            self.linear(f"{block}.attn.{one}", text_tokens, text) for one in ("add_q_proj", "add_k_proj", "add_v_proj")
        ]
        joint = self.attention(any((*of_image, *of_text)))
        image = self.linear(f"{block}.attn.to_out.0", image_tokens, joint) or image
        text = self.linear(f"{block}.attn.to_add_out", text_tokens, joint) or text
        inner = self.linear(f"{block}.ff.linear_in", image_tokens, image)
        image = self.linear(f"{block}.ff.linear_out", image_tokens, inner) or image
        inner = self.linear(f"{block}.ff_context.linear_in", text_tokens, text)
        return image, self.linear(f"{block}.ff_context.linear_out", text_tokens, inner) or text

    def single_block(self, index: int, needs: bool) -> bool:
        """Count a single block over text and image tokens; takes and returns whether they need a gradient."""
        block, tokens = f"single_transformer_blocks.{index}", self.image_tokens + self.text_tokens
        fused = self.linear(f"{block}.attn.to_qkv_mlp_proj", tokens, needs)
        return self.linear(f"{block}.attn.to_out", tokens, self.attention(fused)) or needs


def step_flops(
    layout: Layout,
    ranks: Mapping[str, int],
    image_tokens: int,
    text_tokens: int,
    recomputed: Collection[int] = (),
) -> StepFlops:
    """Count the step of one sample: forward and backward pass of the transformer with an adapter of these ranks.

    `image_tokens` are those of the target and of all references; `recomputed` are the places of blocks (double ones
    first) whose forward pass is computed again. Agrees with torch's FlopCounterMode, which recomputes a little less of
    a block than all of it.
    """
    counter = Counter(layout, ranks, image_tokens, text_tokens)
    for name in counter.shapes:
        if name.startswith(ONCE):
            counter.linear(name, 1, False)
    image = counter.linear("x_embedder", image_tokens, False)
    text = counter.linear("context_embedder", text_tokens, False)
    for index in range(layout.num_double):
        image, text = counter.double_block(index, image, text)
    both = image or text
    for index in range(layout.num_single):
        both = counter.single_block(index, both)
    counter.linear("proj_out", image_tokens, both)
    for place in recomputed:
        again = Counter(layout, {}, image_tokens, text_tokens)
        if place < layout.num_double:
            again.double_block(place, False, False)
        else:
            again.single_block(place - layout.num_double, False)
        counter.flops.base += again.flops.base
        counter.flops.attention += again.flops.attention
    return counter.flops
