"""The transformers backend with the tiny random Qwen3-VL: real classes, no download, the same words on every run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.captions.conftest import measured, stage_of

from likeness.captions.captioner import Answer, Question, Unanswered, captioner_class
from likeness.captions.write import CaptionWriter
from likeness.errors import UserError
from likeness.miniature.vlm import build_vlm
from likeness.photos.images import images_of
from likeness.store import Store

Photos = Callable[[int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vlm(tmp_path_factory.mktemp("vlm") / "tiny-vlm")


def test_answers_pictures_and_repeats_itself(vlm: Path, photos: Photos, tmp_path: Path) -> None:
    rows = photos(3)
    stage = stage_of(backend="transformers", model=str(vlm), max_new_tokens=16, max_side_px=64)
    one, other, gone = (Question(tuple(images_of(row)), "Say é.") for row in rows)
    two = Question((*one.images, *other.images), "Say é.")
    Path(rows[2]["path"]).write_bytes(b"")
    runs = []
    for _ in range(2):
        captioner = captioner_class("transformers")(stage, tmp_path)
        runs.append([answer for _, answer in captioner.answers([one, two])])
    assert runs[0] == runs[1]
    first, second = runs[0]
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert 0 < (first.tokens_out or 0) <= 16
    assert first.truncated is (first.tokens_out == 16)
    assert (second.tokens_in or 0) > (first.tokens_in or 0) > len("Say é.")  # the tokenizer is byte-level
    with pytest.raises(UserError, match="changed after it was indexed"):
        list(captioner.answers([gone]))
    Path(rows[2]["path"]).unlink()
    [(_, missing)] = captioner.answers([gone])
    assert isinstance(missing, Unanswered)


@pytest.mark.parametrize("several", [False, True])
def test_an_answer_that_ends_with_the_last_token_allowed_is_not_cut_off(
    vlm: Path, photos: Photos, tmp_path: Path, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    [row] = photos(1)
    stage = stage_of(backend="transformers", model=str(vlm), max_new_tokens=16, max_side_px=64)
    captioner: Any = captioner_class("transformers")(stage, tmp_path)
    question = Question(tuple(images_of(row)), "Say é.")
    asked: list[int] = []
    real = captioner._model.generate

    def recorded(**inputs: Any) -> Any:
        produced = real(**inputs)
        asked.append(int(produced[0, -1]))
        return produced

    monkeypatch.setattr(captioner._model, "generate", recorded)
    monkeypatch.setattr(captioner._model.generation_config, "eos_token_id", None)
    [(_, endless)] = captioner.answers([question])
    assert (endless.tokens_out, endless.truncated) == (16, True)
    last = asked[-1]
    monkeypatch.setattr(captioner._model.generation_config, "eos_token_id", [0, last] if several else last)
    [(_, ended)] = captioner.answers([question])
    assert ended.truncated is False


def test_a_full_store_loads_no_model(vlm: Path, photos: Photos, store: Store, tmp_path: Path) -> None:
    rows = photos(2)
    quality = [measured(row["id"]) for row in rows]
    moved = Path(shutil.copytree(vlm, tmp_path / "moved" / "tiny-vlm"))
    stage = stage_of(backend="transformers", model=str(vlm), max_new_tokens=16, max_side_px=64, asks=1)
    first = CaptionWriter(stage, store)
    written = first.rows(rows, quality)
    assert first.models_loaded == 1
    assert {row["model"] for row in written} == {"tiny-vlm"}
    assert all(row["tokens_in"] > 0 and row["cost_usd"] is None for row in written)
    # Noise is no caption: it is asked again, then left to a person.
    assert [(row["status"], row["asked"], row["caption"]) for row in written] == [("needs_review", 2, "")] * 2
    again = CaptionWriter(
        stage_of(backend="transformers", model=str(moved), max_new_tokens=16, max_side_px=64, asks=1), store
    )
    assert again.rows(rows, quality) == written
    assert (again.models_loaded, again.asked) == (0, 0)


def test_absent_weights_are_named(vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = captioner_class("transformers")
    with pytest.raises(
        UserError, match=re.escape(f"captions.model: the model folder {tmp_path}/none lacks config.json")
    ):
        captioner.fingerprint(stage_of(backend="transformers", model=f"{tmp_path}/none"), tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with pytest.raises(
        UserError, match=r"captions\.model: the weights of 'nobody/no-such-vlm' are missing: `offline` is true"
    ):
        captioner(stage_of(backend="transformers", model="nobody/no-such-vlm"), tmp_path)
    for name, said in (
        ("model.safetensors", "model.safetensors or"),
        ("processor_config.json", "processor_config.json or"),
    ):
        folder = Path(shutil.copytree(vlm, tmp_path / name))
        for file in (folder / name, folder / "preprocessor_config.json"):
            if name != "model.safetensors" or file.name == name:
                file.unlink(missing_ok=True)
        with pytest.raises(UserError, match=re.escape(str(folder)) + ".*" + re.escape(said)):
            captioner(stage_of(backend="transformers", model=str(folder)), tmp_path)


def test_torn_and_unexpected_weights_are_named(vlm: Path, tmp_path: Path) -> None:
    captioner = captioner_class("transformers")
    folder = Path(shutil.copytree(vlm, tmp_path / "torn"))
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=re.escape(str(folder)) + " are not a vision-language model"):
        captioner(stage_of(backend="transformers", model=str(folder)), tmp_path)
    with pytest.raises(UserError, match=r"captions\.model\.sha256"):
        captioner(stage_of(backend="transformers", model={"source": str(vlm), "sha256": "0" * 64}), tmp_path)


def test_the_fingerprint_is_of_bytes_or_revision(vlm: Path, tmp_path: Path) -> None:
    captioner = captioner_class("transformers")
    moved = Path(shutil.copytree(vlm, tmp_path / "moved"))
    other = build_vlm(tmp_path / "other", seed=1)
    found = [
        captioner.fingerprint(stage_of(backend="transformers", model=str(folder)), tmp_path)
        for folder in (vlm, moved, other)
    ]
    assert found[0] == found[1] != found[2]
    pinned = stage_of(backend="transformers", model={"source": "nobody/no-such-vlm", "revision": "abc"})
    assert captioner.fingerprint(pinned, tmp_path) == "nobody/no-such-vlm@abc"
