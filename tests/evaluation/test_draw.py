"""Drawing: bits that hang on the item alone, LoRA strength, errors. Oracle: diffusers' own LoRA loading."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from likeness.config.base import ModelSource
from likeness.errors import UserError
from likeness.evaluation.draw import Drawer, LoraFile, Request, adapter_on, base_fingerprint
from likeness.evaluation.once import draw_once
from likeness.evaluation.pictures import Pictures
from likeness.evaluation.prompts import GridPoint
from likeness.klein.load import BaseModel
from likeness.store import Store, sha256_of_file

POINTS = [GridPoint(f"p{at}", "subject", f"prompt number {at}", at % 2, "select", 32, 32) for at in range(5)]


def drawer_of(project, folder, **changes):
    evaluation = project.stage.evaluation.model_copy(update=changes)
    return Drawer(project.stage.model_copy(update={"evaluation": evaluation}), Store(folder), {})


def lora_of(project, step=500):
    path = project.steps.parent / f"step-{step:06d}.safetensors"
    return LoraFile(path, sha256_of_file(path))


def test_an_image_is_the_same_whichever_others_are_drawn_with_it(project, tmp_path):
    lora = lora_of(project)
    requests = [Request(point, lora) for point in POINTS]
    together = drawer_of(project, tmp_path / "a").draw(requests)
    alone = {request: drawer_of(project, tmp_path / "b").draw([request])[request] for request in reversed(requests)}
    assert together == alone
    assert len(set(together.values())) == 5


def test_same_prompt_and_seed_start_from_the_same_noise_for_every_checkpoint(project, tmp_path):
    drawer = drawer_of(project, tmp_path / "a")
    point = POINTS[0]
    requests = [Request(point), Request(point, lora_of(project), 0.0), Request(point, lora_of(project), 1.0)]
    found = drawer.draw(requests)
    pictures = Pictures(drawer.store, {}, None)
    bare, zero, full = (pictures.raw(found[request]).astype(int) for request in requests)
    assert np.abs(bare - zero).max() <= 1
    assert np.abs(bare - full).mean() > 1


def test_key_names_everything_that_changes_the_image(project, tmp_path):
    drawer = drawer_of(project, tmp_path)
    point = POINTS[0]
    keys = {
        drawer.key(Request(point)),
        drawer.key(Request(point, lora_of(project))),
        drawer.key(Request(point, lora_of(project), 0.5)),
    }
    for change in ({"seed": 9}, {"prompt": "x"}, {"width_px": 48}, {"reference_sha256s": ("r",)}):
        keys.add(drawer.key(Request(replace(point, **change))))
    for change in ({"sampling_steps": 3}, {"guidance_scale": 2.0}, {"precision": "bfloat16"}):
        keys.add(drawer_of(project, tmp_path, **change).key(Request(point)))
    assert len(keys) == 10
    same = {drawer.key(Request(point)), drawer.key(Request(replace(point, prompt_id="renamed", split="report")))}
    assert same == {drawer_of(project, tmp_path, batch_size=1).key(Request(point))}


@torch.no_grad()
def test_adapter_changes_the_model_as_diffusers_does_and_leaves_no_trace(project):
    from diffusers import Flux2KleinPipeline

    base = BaseModel(str(project.base))
    lora = lora_of(project)
    torch.manual_seed(0)
    facts = {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 8, 96),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 4),
        "txt_ids": torch.zeros(8, 4),
        "guidance": None,
    }
    bare = base.transformer(**facts, return_dict=False)[0]
    with adapter_on(base, lora, 0.7):
        ours = base.transformer(**facts, return_dict=False)[0]
    assert torch.equal(base.transformer(**facts, return_dict=False)[0], bare)
    pipeline = Flux2KleinPipeline.from_pretrained(project.base)
    pipeline.load_lora_weights(str(lora.path), adapter_name="own")
    pipeline.set_adapters(["own"], [0.7])
    theirs = pipeline.transformer(**facts, return_dict=False)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (ours - bare).abs().max() > 1e-3


def test_lora_of_other_bytes_is_refused(project):
    with (
        pytest.raises(UserError, match=r"steps\.json"),
        adapter_on(BaseModel(str(project.base)), LoraFile(lora_of(project).path, "0" * 64), 1.0),
    ):
        pass


def test_size_that_is_no_whole_tokens_is_refused(project, tmp_path):
    with pytest.raises(UserError, match="whole tokens of 4 px"):
        drawer_of(project, tmp_path).draw([Request(replace(POINTS[0], width_px=30))])


def test_fingerprint_is_the_models_own(project):
    assert base_fingerprint(ModelSource(source=str(project.base)), True) == BaseModel(str(project.base)).fingerprint


def test_distilled_model_is_drawn_in_four_steps_without_guidance(project, tmp_path):
    from tests.tiny import save_tiny

    save_tiny(tmp_path / "distilled", seed=5, is_distilled=True)
    model = ModelSource(source=str(tmp_path / "distilled"))
    stage = project.stage.model_copy(
        update={"evaluation": project.stage.evaluation.model_copy(update={"sampling_steps": 20})}
    )
    drawer = Drawer(stage, Store(tmp_path), {}, model)
    assert (drawer.steps, drawer.guidance) == (4, 1.0)
    assert (Drawer(stage, Store(tmp_path), {}).steps, Drawer(stage, Store(tmp_path), {}).guidance) == (20, 4.0)


def test_draw_once_writes_the_image(project, tmp_path):
    output = tmp_path / "try.png"
    sha256 = draw_once(project.stage, project.store(), lora_of(project).path, "{trigger} smiles", output, scale=0.9)
    assert sha256_of_file(output) == sha256


def test_nothing_to_draw_loads_no_torch(project, tmp_path):
    """A second process finds its images in the store and imports neither torch nor diffusers."""
    drawer = drawer_of(project, tmp_path / "store")
    drawer.draw([Request(POINTS[0])])
    code = (
        "import sys; from pathlib import Path\n"
        "from likeness.config.evaluation import ScoreStage\n"
        "from likeness.evaluation.draw import Drawer, Request\n"
        "from likeness.evaluation.prompts import GridPoint\n"
        "from likeness.store import Store\n"
        "stage = ScoreStage.model_validate_json(sys.argv[1])\n"
        "point = GridPoint('p0', 'subject', 'prompt number 0', 0, 'select', 32, 32)\n"
        "assert Drawer(stage, Store(Path(sys.argv[2])), {}).draw([Request(point)])\n"
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, project.stage.model_dump_json(), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        cwd="scripts",
    )
    assert done.stdout.strip() == "[]", done.stderr
