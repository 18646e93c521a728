"""Several LoRAs at once on the tiny pipeline. Oracles: the merged file, single LoRAs, and decoded tokens."""

from __future__ import annotations

import numpy as np
import pytest
from tests.evaluation.conftest import lora_file
from tests.evaluation.test_draw import POINTS

from likeness.config.surgery import Probe, ProbeStage
from likeness.errors import UserError
from likeness.evaluation.draw import Drawer, LoraFile, Request
from likeness.evaluation.mix import Mixture, MixtureDrawer
from likeness.evaluation.pictures import Pictures
from likeness.evaluation.probe import Prober, probe_blocks, split_by_swaps
from likeness.klein.load import BaseModel
from likeness.klein.text import chat_text, word_tokens
from likeness.lora.files import read_lora
from likeness.lora.merge import merge_loras
from likeness.lora.operation import write_operation
from likeness.store import Store, sha256_of_file
from likeness.tables import read_rows
from likeness.tables_surgery import PROBE

POINT = POINTS[0]


@pytest.fixture
def files(project):
    found = []
    for name, (seed, strength) in {"a": (1, 0.7), "b": (2, 0.7)}.items():
        path = project.folder / f"{name}.safetensors"
        lora_file(path, project.base, seed, strength)
        found.append(LoraFile(path, sha256_of_file(path)))
    return found


def pixels(drawer, request):
    return Pictures(drawer.store, {}, None).raw(drawer.draw([request])[request]).astype(int)


def mixed(project, tmp_path, mixture, request):
    return pixels(MixtureDrawer(project.stage, Store(tmp_path / "store"), {}, mixture), request)


def plain(project, tmp_path, request):
    return pixels(Drawer(project.stage, Store(tmp_path / "store"), {}), request)


def test_a_sum_at_run_time_is_the_merged_file(project, tmp_path, files):
    path = tmp_path / "merged.safetensors"
    write_operation(path, merge_loras([read_lora(one.path) for one in files], [1.0, 1.0]), {})
    merged = plain(project, tmp_path, Request(POINT, LoraFile(path, sha256_of_file(path))))
    together = mixed(project, tmp_path, Mixture("sum", (files[1],)), Request(POINT, files[0]))
    alone = plain(project, tmp_path, Request(POINT, files[0]))
    assert np.abs(merged - together).max() <= 1
    assert np.abs(alone - together).mean() > 1


def test_equal_loras_chosen_by_layer_and_step_are_either(project, tmp_path, files):
    together = mixed(project, tmp_path, Mixture("k-lora", (files[0],)), Request(POINT, files[0]))
    assert np.abs(together - plain(project, tmp_path, Request(POINT, files[0]))).max() <= 1
    two = mixed(project, tmp_path, Mixture("k-lora", (files[1],)), Request(POINT, files[0]))
    assert min(np.abs(two - plain(project, tmp_path, Request(POINT, one))).mean() for one in files) > 0.5


def test_masked_mixing_draws_something_between_and_leaves_the_base_alone(project, tmp_path, files):
    mixture = Mixture("masked", (files[1],), ("prompt", "number"))
    drawer = MixtureDrawer(project.stage, Store(tmp_path / "store"), {}, mixture)
    found = pixels(drawer, Request(POINT, files[0]))
    others = [plain(project, tmp_path, Request(POINT, one)) for one in (None, *files)]
    assert min(np.abs(found - other).mean() for other in others) > 0.1
    base = pixels(drawer, Request(POINT))
    assert np.array_equal(base, others[0])


def test_mixtures_have_keys_of_their_own(project, tmp_path, files):
    store, request = Store(tmp_path), Request(POINT, files[0])
    mixtures = [
        Mixture("sum", (files[1],)),
        Mixture("k-lora", (files[1],)),
        Mixture("masked", (files[1],), ("prompt", "number")),
        Mixture("masked", (files[1],), ("number", "prompt")),
        Mixture("sum", (files[1], files[1])),
    ]
    drawers = [MixtureDrawer(project.stage, store, {}, mixture) for mixture in mixtures]
    assert len({drawer.key(request) for drawer in drawers} | {Drawer(project.stage, store, {}).key(request)}) == 6
    assert len({drawer.key(Request(POINT)) for drawer in drawers}) == 1


def test_what_cannot_be_mixed_is_named(files):
    with pytest.raises(UserError, match="exactly one content with one style"):
        Mixture("k-lora", tuple(files))
    with pytest.raises(UserError, match="one word for each LoRA"):
        Mixture("masked", (files[0],), ("one",))


def test_tokens_of_a_word_are_found_in_the_prompt(tiny_folder):
    base = BaseModel(str(tiny_folder))
    prompt = "j4ne and j4nes, then j4ne"
    marked = word_tokens(base, prompt, "j4ne")
    ids = base.tokenizer(
        chat_text(base, prompt), padding="max_length", truncation=True, max_length=base.max_text_tokens
    )["input_ids"]
    assert base.tokenizer.decode([one for one, is_marked in zip(ids, marked, strict=True) if is_marked]) == "j4nej4ne"
    assert len(marked) == base.max_text_tokens
    assert not word_tokens(base, prompt, "sam").any()


def test_every_block_is_probed_and_all_together_are_the_other_prompt(project, tmp_path):
    store = Store(tmp_path / "store")
    prober = Prober(project.stage, store)
    roles = prober.roles("a photo of a dog", "a drawing of a ship", [1])
    assert [role.block for role in roles] == ["double.0", "double.1", "single.0", "single.1", "single.2"]
    assert all(0 < role.change < 2 and role.clip is None for role in roles)
    drawn = store.computed["generated-images"]
    assert drawn == 2 + len(roles)
    assert prober.roles("a photo of a dog", "a drawing of a ship", [1]) == roles
    assert store.computed["generated-images"] == drawn


def test_a_probes_table_holds_both_swaps_and_every_blocks_role(project, tmp_path):
    texts = {"prompt": "a photo of a {class}", "content": "a photo of a ship", "style": "an etching of a {class}"}
    stage = ProbeStage(probe=Probe.model_validate({**texts, "seeds": [1]}), scoring=project.stage)
    store, output = Store(tmp_path / "store"), tmp_path / "probe" / "roles.parquet"
    rows = probe_blocks(Prober(project.stage, store), stage, "jane", output)
    assert read_rows(output, PROBE) == rows and [row["block"] for row in rows[:2]] == ["double.0", "double.1"]
    again = Prober(project.stage, store)
    filled = [text.replace("{class}", project.stage.class_word) for text in texts.values()]
    swaps = [again.roles(filled[0], other, [1]) for other in filled[1:]]
    assert again.models_loaded == 0
    assert [row["change"] for row in rows] == [role.change for roles in swaps for role in roles]
    content = {row["block"] for row in rows if row["role"] == "content"}
    assert content == set(split_by_swaps(*swaps)["content_blocks"])


def test_content_and_style_change_places(project, tmp_path, files):
    """The other LoRA's request with roles turned is the same picture as the first one's."""
    here = mixed(project, tmp_path, Mixture("k-lora", (files[1],)), Request(POINT, files[0]))
    turned = Mixture("k-lora", (files[0],), own_is_style=True)
    there = mixed(project, tmp_path, turned, Request(POINT, files[1]))
    assert np.abs(here - there).max() <= 1
    other = mixed(project, tmp_path, Mixture("k-lora", (files[0],)), Request(POINT, files[1]))
    assert np.abs(here - other).mean() > 0.1
