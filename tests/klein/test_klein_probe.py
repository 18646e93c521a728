"""The prompt-swap probe. Oracles: all blocks is the other prompt, none is the first, and blocks do not mix."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.tiny import tiny_transformer

from likeness.evaluation.probe import Role, split_by_swaps
from likeness.klein import ids
from likeness.klein.probe import named_blocks, text_swapped
from likeness.klein.velocity import predict_velocity

torch.manual_seed(1)
NOISY, OWN, OTHER = torch.randn(2, 6, 16), torch.randn(2, 5, 96), torch.randn(2, 5, 96)
POSITIONS = (ids.target_ids(2, 3), ids.text_ids(5))


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer(seed=2)


@torch.no_grad()
def velocity(transformer, embeddings):
    return predict_velocity(transformer, NOISY, torch.tensor([0.3, 0.7]), embeddings, *POSITIONS)


def swapped(transformer, blocks, embeddings=OWN):
    with text_swapped(transformer, OWN, OTHER, blocks):
        return velocity(transformer, embeddings)


def test_all_blocks_are_the_other_prompt_and_none_the_first(transformer):
    names = [name for name, _ in named_blocks(transformer)]
    assert names == ["double.0", "double.1", "single.0", "single.1", "single.2"]
    assert torch.equal(swapped(transformer, names), velocity(transformer, OTHER))
    assert torch.equal(swapped(transformer, []), velocity(transformer, OWN))
    assert torch.equal(velocity(transformer, OWN), swapped(transformer, []))


def test_every_block_alone_changes_the_picture_in_its_own_way(transformer):
    found = [swapped(transformer, [name]) for name, _ in named_blocks(transformer)]
    for place, one in enumerate(found):
        assert (one - velocity(transformer, OWN)).abs().max() > 1e-4
        assert all((one - other).abs().max() > 1e-4 for other in found[place + 1 :])


def test_a_prefix_of_blocks_is_the_run_whose_image_saw_the_other_text_so_far(transformer):
    """By hand: the first block with the other text, then the blocks after it with the first prompt's own text."""
    texts, other = {}, tiny_transformer(seed=2)

    def record(name, module, args, given):
        text = given["encoder_hidden_states"]
        texts[name] = given["hidden_states"][:, :5] if text is None else text

    hooks = [
        block.register_forward_pre_hook(partial(record, name), with_kwargs=True)
        for name, block in named_blocks(transformer)
    ]
    velocity(transformer, OWN)
    for hook in hooks:
        hook.remove()
    first = swapped(transformer, ["double.0"])

    def own_text(name, block):
        def hook(module, args, given):
            if name.startswith("double"):
                return args, given | {"encoder_hidden_states": texts[name]}
            return args, given | {"hidden_states": torch.cat([texts[name], given["hidden_states"][:, 5:]], dim=1)}

        block.register_forward_pre_hook(hook, with_kwargs=True)

    for name, block in list(named_blocks(other))[1:]:
        own_text(name, block)
    assert torch.allclose(velocity(other, OTHER), first, atol=1e-6)


def test_calls_for_guidance_are_left_alone(transformer):
    empty = torch.zeros_like(OWN)
    assert torch.equal(swapped(transformer, ["single.1"], empty), velocity(transformer, empty))


def test_roles_are_a_partition():
    content = [Role("double.0", 0.2, None), Role("single.0", 0.6, None), Role("single.1", 0.1, None)]
    style = [Role("double.0", 0.1, None), Role("single.0", 0.2, None), Role("single.1", 0.4, None)]
    assert split_by_swaps(content, style) == {"content_blocks": ["double.0", "single.0"], "style_blocks": ["single.1"]}
