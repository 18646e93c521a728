"""Two LoRAs at inference: K-LoRA's table and masked blending. Oracles: full matrices, the ordinary LoRA, the bare base,
and diffusers' own attention weights.
"""

from __future__ import annotations

import pytest
import torch
from tests.lora.test_lora_blocks import lora_on
from tests.lora.test_lora_files import velocity
from tests.tiny import tiny_transformer

from likeness.errors import UserError
from likeness.klein import ids
from likeness.klein.targets import matched_names, target_regex
from likeness.klein.velocity import predict_velocity
from likeness.lora.adapter import Lora
from likeness.lora.klora import (
    CONTENT_FIRST,
    STYLE_FIRST,
    Schedule,
    balance,
    klora_hook,
    klora_table,
    mass_of,
    shares_of_content,
)
from likeness.lora.masked import AttentionPrior, attention_to_words, blended, masks_of
from likeness.lora.runtime import adapters_on

TOKENS, TEXT = 6, 5


@pytest.fixture(scope="module")
def pair(layout):
    names = matched_names(target_regex("all_blocks", layout), layout)
    return lora_on(names, layout, seed=1, rank=3), lora_on(names, layout, seed=2, rank=2, scale=1.3)


def scaled(lora, factor):
    return Lora({name: module._replace(scale=factor * module.scale) for name, module in lora.modules.items()})


def only(lora):
    transformer = tiny_transformer(seed=1)
    with adapters_on(transformer, {"a": lora}, "the LoRA"):
        return velocity(transformer)


# ---- K-LoRA --------------------------------------------------------------------------------------------------------------


def test_mass_agrees_with_the_full_matrix_over_chunks(pair, monkeypatch):
    monkeypatch.setattr("likeness.lora.klora.CHUNK_ENTRIES", 500)
    for module in [*pair[0].modules.values()][:14]:
        entries = module.delta().abs().double().flatten().sort(descending=True).values
        found = mass_of(module, 6)
        assert found.top == pytest.approx(float(entries[:6].sum()), rel=1e-5)
        assert found.whole == pytest.approx(float(entries.sum()), rel=1e-5)


def test_table_agrees_with_the_formula_written_out(pair):
    content, style = pair
    steps, changes = 8, {name: (content.modules[name].delta(), style.modules[name].delta()) for name in content.modules}
    ratios = [float(ours.abs().sum() / theirs.abs().sum()) for ours, theirs in changes.values()]
    mean = sum(ratios) / len(ratios)
    kept = [ratio for ratio in ratios if ratio <= 3 * mean]
    gamma = sum(kept) / len(kept)
    for schedule, at in (
        (CONTENT_FIRST, lambda step: 1.5 * step / steps + 0.5),
        (STYLE_FIRST, lambda step: (1.5 * step / steps + 1.275) % 1.5),
    ):
        table = klora_table(content, style, steps, schedule)
        for name, (ours, theirs) in changes.items():
            top = [float(one.abs().flatten().sort(descending=True).values[:6].sum()) for one in (ours, theirs)]
            assert table[name] == tuple(top[0] / gamma > top[1] * at(step) for step in range(steps))


def test_content_comes_first_and_style_last_and_the_size_of_a_lora_does_not_matter(pair):
    table = klora_table(*pair, 10)
    shares = list(shares_of_content(table))
    assert shares == sorted(shares, reverse=True) and shares[0] == 1.0 and shares[-1] == 0.0
    assert klora_table(scaled(pair[0], 7.0), pair[1], 10) == table
    assert klora_table(scaled(pair[0], 7.0), scaled(pair[1], 7.0), 10) == table
    wrapped = list(shares_of_content(klora_table(*pair, 20, STYLE_FIRST)))
    assert wrapped[0] < 0.5 and wrapped[6] == 1.0 and wrapped[-1] < 0.5


def test_roles_swap(pair):
    even = Schedule(alpha=0.0, beta=1.0)
    forth, back = klora_table(*pair, 1, even), klora_table(pair[1], pair[0], 1, even)
    differing = [name for name in forth if forth[name] == back[name]]
    assert len(differing) <= len(forth) // 4, "only layers within γ's tolerance may go to the same LoRA both ways"


def test_outliers_do_not_enter_the_balance():
    assert balance([(1, 1), (2, 1), (3, 1), (100, 1)]) == pytest.approx(2.0)
    with pytest.raises(UserError, match="changes nothing"):
        balance([(1, 0)])


def test_the_hook_leaves_one_lora_in_each_layer(pair):
    content, style = pair
    everything = dict.fromkeys(content.modules, (True, False))
    transformer = tiny_transformer(seed=1)
    with adapters_on(transformer, {"content": content, "style": style}, "the LoRAs"):
        hook = klora_hook(transformer, "content", "style", everything, {"content": 1.0, "style": 1.0})
        hook(0, 1.0)
        assert torch.allclose(velocity(transformer), only(content), atol=1e-6)
        hook(1, 0.5)
        assert torch.allclose(velocity(transformer), only(style), atol=1e-6)
        one = next(iter(everything))
        mixed = klora_hook(transformer, "content", "style", {one: (True,)}, {"content": 1.0, "style": 1.0})
        mixed(0, 1.0)
        kept = Lora({name: module for name, module in style.modules.items() if name != one})
        with adapters_on(other := tiny_transformer(seed=1), {"a": content, "b": kept}, "the LoRAs"):
            assert torch.allclose(velocity(transformer), velocity(other), atol=1e-6)


def test_equal_loras_give_either(pair):
    content = pair[0]
    table = klora_table(content, content, 4)
    transformer = tiny_transformer(seed=1)
    with adapters_on(transformer, {"content": content, "style": content}, "the LoRAs"):
        hook = klora_hook(transformer, "content", "style", table, {"content": 1.0, "style": 1.0})
        for step in range(4):
            hook(step, 0.5)
            assert torch.allclose(velocity(transformer), only(content), atol=1e-6)


def test_loras_without_a_common_layer_are_refused(layout):
    first, second = (
        lora_on([name], layout) for name in ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q")
    )
    with pytest.raises(UserError, match="no layer in common"):
        klora_table(first, second, 4)


# ---- masked residual blending -------------------------------------------------------------------------------------------


def blended_velocity(loras, masks_CL):
    transformer = tiny_transformer(seed=1)
    masks_BCL = torch.tensor(masks_CL).float().expand(2, -1, -1)
    with adapters_on(transformer, loras, "the LoRAs"):
        with blended(transformer, masks_BCL, dict.fromkeys(loras, 1.0), TEXT):
            inside = velocity(transformer)
        after = velocity(transformer)
    return inside, after


def test_a_full_mask_is_the_ordinary_lora_and_an_empty_one_the_bare_base(pair):
    full, after = blended_velocity({"a": pair[0]}, [[1.0] * TOKENS])
    assert torch.allclose(full, only(pair[0]), atol=1e-5)
    assert torch.allclose(after, only(pair[0]), atol=1e-6)
    empty, _ = blended_velocity({"a": pair[0]}, [[0.0] * TOKENS])
    assert torch.allclose(empty, velocity(tiny_transformer(seed=1)), atol=1e-6)
    one_has_it_all, _ = blended_velocity({"a": pair[0], "b": pair[1]}, [[0.0] * TOKENS, [1.0] * TOKENS])
    assert torch.allclose(one_has_it_all, only(pair[1]), atol=1e-5)


def test_disjoint_masks_of_one_token_wise_block_give_each_token_its_own_lora(layout):
    """The last block's output projection works token by token, so halves are exactly those of the single LoRAs."""
    name = f"single_transformer_blocks.{layout.num_single - 1}.attn.to_out"
    first, second = lora_on([name], layout, seed=1), lora_on([name], layout, seed=2)
    masks = [[1.0] * 3 + [0.0] * 3, [0.0] * 3 + [1.0] * 3]
    mixed, _ = blended_velocity({"a": first, "b": second}, masks)
    assert torch.allclose(mixed[:, :3], only(first)[:, :3], atol=1e-5)
    assert torch.allclose(mixed[:, 3:], only(second)[:, 3:], atol=1e-5)
    assert (mixed[:, :3] - only(second)[:, :3]).abs().max() > 1e-3


def test_overlapping_masks_share(pair):
    shared, _ = blended_velocity({"a": pair[0], "b": pair[0]}, [[1.0] * TOKENS, [1.0] * TOKENS])
    assert torch.allclose(shared, only(pair[0]), atol=1e-4)


def test_modules_outside_of_the_blocks_are_refused(pair, layout):
    lora = lora_on(["x_embedder"], layout)
    with pytest.raises(UserError, match="other: 0"):
        blended_velocity({"a": lora}, [[1.0] * TOKENS])


def test_recorded_attention_agrees_with_attention_written_out():
    """With values that name their key, attention's own output is the probabilities: compared for one head."""
    transformer = tiny_transformer(seed=1)
    attention = transformer.transformer_blocks[-1].attn
    torch.manual_seed(0)
    image, text = torch.randn(2, TOKENS, 64), torch.randn(2, TEXT, 64)
    words = torch.zeros(2, 1, TEXT, dtype=torch.bool)
    words[0, 0, 1] = words[1, 0, 3] = True
    rotary = transformer.pos_embed(torch.cat([ids.text_ids(TEXT), ids.target_ids(2, 3)]))
    found = attention_to_words(attention, image, text, rotary, words)
    with torch.no_grad():
        attention.to_v.weight.zero_(), attention.add_v_proj.weight.zero_()
        attention.to_out[0].weight.copy_(torch.eye(64)), attention.to_add_out.weight.copy_(torch.eye(64))
    for sample, token in ((0, 1), (1, 3)):
        marked = torch.zeros(2, TEXT, 64)
        marked[sample, token] = 1.0
        attention.add_v_proj.forward = lambda _, marked=marked: marked
        with torch.no_grad():
            probabilities = attention(image, text, image_rotary_emb=rotary)[0]
        per_head = probabilities[sample].reshape(TOKENS, -1, attention.head_dim)[..., 0].mean(1)
        assert torch.allclose(found[sample, 0], per_head, atol=1e-5)
    assert found.shape == (2, 1, TOKENS) and found.min() > 0 and found.max() < 1


def test_the_prior_is_averaged_over_calls_and_gone_afterwards():
    transformer = tiny_transformer(seed=1)
    words = torch.ones(2, 2, TEXT, dtype=torch.bool)
    with AttentionPrior(transformer, words, TOKENS) as prior:
        velocity(transformer)
        once = prior.prior_BCL
        velocity(transformer)
    assert prior.prior_BCL.shape == (2, 2, TOKENS)
    assert torch.allclose(prior.prior_BCL, once)
    assert not transformer.transformer_blocks[-1].attn._forward_pre_hooks


def test_masks_do_not_overlap_and_follow_the_stronger_word():
    prior = torch.full((1, 2, 36), 0.1)
    prior[0, 0, :18] = 0.9
    prior[0, 1, 18:] = 0.05
    prior[0, 1, 30:] = 0.4
    masks = masks_of(prior, (6, 6))
    assert float(masks.sum(1).max()) == 1.0
    assert masks[0, 0, :12].all() and masks[0, 1, 30:].all()
    assert not masks[0, 0, 24:].any() and not masks[0, 1, :12].any()


def test_references_belong_to_no_place(pair):
    """With reference tokens behind the target's, a full mask is still the ordinary LoRA."""
    transformer = tiny_transformer(seed=1)
    torch.manual_seed(3)
    inputs = (torch.randn(1, TOKENS, 16), torch.tensor([0.5]), torch.randn(1, TEXT, 96))
    more = (ids.target_ids(2, 3), ids.text_ids(TEXT), torch.randn(1, 4, 16), ids.reference_ids([(2, 2)]))
    with torch.no_grad(), adapters_on(transformer, {"a": pair[0]}, "the LoRA"):
        ordinary = predict_velocity(transformer, *inputs, *more)
        with blended(transformer, torch.ones(1, 1, TOKENS), {"a": 1.0}, TEXT):
            masked = predict_velocity(transformer, *inputs, *more)
    assert torch.allclose(masked, ordinary, atol=1e-5)
