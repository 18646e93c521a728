"""From rows to captions: whatever a server says, accepted captions break no rule, and nothing is paid for twice."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.captions.conftest import measured, stage_of, write_photo
from tests.captions.stub import Reply, StubServer, good

from likeness.captions.interview import STAGE
from likeness.captions.lint import lint
from likeness.captions.pictures import data_uri
from likeness.captions.write import CaptionWriter
from likeness.config.captions import CaptionStage
from likeness.errors import TransientError, UserError
from likeness.photos.images import images_of
from likeness.store import Store
from likeness.tables import CAPTIONS, table_of

Photos = Callable[[int], list[dict[str, Any]]]
LEAKS = {
    "eyes",
    "nose",
    "lips",
    "jaw",
    "cheekbones",
    "freckles",
    "hair",
    "beard",
    "skin",
    "young",
    "beautiful",
    "asian",
}
"""An oracle apart from the lint: plain words that no identity caption may hold."""

TORN = Reply(str(good().says)[:-20], finish="length")
BAD: dict[str, list[Reply]] = {
    "broken JSON, then good": [Reply('{"pose": standing}}'), good()],
    "torn JSON": [Reply('{"pose": "sitting", "scene": "a par')],
    "face words in clauses": [good(action="looking up, with blue eyes", clothing="a coat, freckles")],
    "only face words": [Reply('{"pose": "blue eyes", "scene": "long hair"}'), Reply('{"pose": "a beard"}'), good()],
    "face words for ever": [Reply('{"pose": "a young asian woman with a beard"}')],
    "refusal, then good": [Reply("I'm sorry, I can't help with that."), good()],
    "refusal for ever": [Reply("I cannot describe people.")],
    "refusal inside JSON": [Reply('{"pose": "I cannot identify this person"}')],
    "wrong framing": [good(framing="full body", pose="full body shot", action="close-up, reading")],
    "several lines": [good(scene="a park\nwith trees\r\n\nand a pond")],
    "thoughts": [Reply('<think>{"pose": "beautiful skin"}</think>' + str(good().says))],
    "unending thoughts": [Reply("<think>beautiful eyes")],
    "markdown": [Reply(f"Sure!\n```json\n{good().says}\n```\n**Done**")],
    "prose": [Reply("A beautiful woman with long hair.")],
    "wrong types": [good(pose=["standing", 3], clothing={"top": "a coat"}, scene=None, props=True)],
    "too many words": [good(scene=", ".join(f"thing {n}" for n in range(200)))],
    "trigger inside": [good(pose="J4NE standing", scene="j4ne's park")],
    "429 with Retry-After": [Reply("", status=429, headers={"retry-after": "0.1"}), good()],
    "500s, then good": [Reply("", status=500), Reply("", status=500), good()],
    "slow, then good": [Reply("late", delay_s=1.2), good()],
    "hangs up, then good": [Reply(status=0), good()],
    "empty": [Reply("")],
    "null": [Reply(body='{"choices": [{"message": {"content": null}}]}')],
    "cut off, then good": [TORN, good()],
    "cut off for ever": [TORN],
    "cut off while thinking": [Reply("", finish="length")],
    "cut off after the object": [Reply(f"{good().says} I chose these words since", finish="length")],
    "content filter": [Reply(body='{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}')],
}
NEVER = {
    "face words for ever",
    "refusal for ever",
    "refusal inside JSON",
    "unending thoughts",
    "prose",
    "empty",
    "null",
    "cut off for ever",
    "cut off while thinking",
    "content filter",
}


def endpoint_stage(server: StubServer, recipe: str = "character", **more: Any) -> CaptionStage:
    chosen = {"url": server.url, "model": "toy", "timeout_s": 0.6, "attempts": 4} | more
    return stage_of(recipe, "endpoint", **chosen)


def plan(server: StubServer, rows: list[dict[str, Any]], replies: list[list[Reply]]) -> None:
    for row, listed in zip(rows, replies, strict=True):
        server.script[data_uri(list(images_of(row))[-1], 768)] = listed


def test_no_accepted_caption_breaks_a_rule(server: StubServer, store: Store, photos: Photos) -> None:
    rows = photos(len(BAD))
    plan(server, rows, list(BAD.values()))
    stage = endpoint_stage(server, price_in_usd=1.0, price_out_usd=10.0)
    quality = [measured(row["id"]) for row in rows]
    written = CaptionWriter(stage, store).rows(rows, quality)
    kinds = dict(zip((row["id"] for row in rows), BAD, strict=True))
    assert {kinds[row["id"]] for row in written if row["status"] != "ok"} == NEVER
    assert len(written) == len(BAD)
    for row in written:
        if row["status"] == "ok":
            assert lint(row["caption"], stage, "half") == []
            assert row["caption"].startswith("j4ne person, half body, ")
            assert row["caption"].lower().count("j4ne") == 1
            assert not LEAKS & set(re.findall(r"[a-z]+", row["caption"].lower()))
            assert row["reason"] == ""
        else:
            assert (row["caption"], row["status"]) == ("", "needs_review")
            assert row["reason"].endswith("beside the file.")
            assert row["violations"]
    table_of(CAPTIONS, written)
    by_kind = {kinds[row["id"]]: row for row in written}
    assert by_kind["face words in clauses"]["violations"] == ["face: freckles", "face: eyes"]
    assert by_kind["face words in clauses"]["repairs"] == ["freckles", "with blue eyes"]
    assert by_kind["refusal for ever"]["asked"] == 3
    assert by_kind["content filter"]["asked"] == 1
    assert by_kind["cut off, then good"]["asked"] == 2
    assert by_kind["cut off after the object"]["asked"] == 1
    for kind in ("cut off for ever", "cut off while thinking"):
        assert by_kind[kind]["violations"] == ["cut off at captions.max_new_tokens = 256; raise it"]
    again = by_kind["only face words"]
    assert (again["asked"], again["tokens_in"], again["tokens_out"]) == (3, 300, 30)
    assert again["cost_usd"] == pytest.approx((300 * 1.0 + 30 * 10.0) / 1e6)
    assert (again["model"], again["caption_by"]) == ("toy", "endpoint")

    sent = len(server.seen)
    writer = CaptionWriter(stage, store)
    assert writer.rows(rows, quality) == written
    assert len(server.seen) == sent
    assert (writer.models_loaded, writer.asked) == (0, 0)


def test_a_picture_that_the_servers_rules_forbid_is_asked_about_again_on_the_next_run(
    server: StubServer, store: Store, photos: Photos
) -> None:
    rows = photos(2)
    declined = Reply(status=403, body='{"error": {"code": "content_filter", "message": "no"}}')
    plan(server, rows, [[declined, good()], [good()]])
    first, second = (CaptionWriter(endpoint_stage(server), store).rows(rows, []) for _ in range(2))
    assert [row["status"] for row in first] == ["needs_review", "ok"]
    assert "the endpoint declines this picture" in first[0]["reason"]
    assert [row["status"] for row in second] == ["ok", "ok"]
    assert len(server.seen) == 3


def test_a_further_ask_says_what_was_wrong(server: StubServer, store: Store, photos: Photos) -> None:
    rows = photos(1)
    plan(server, rows, [[Reply('{"pose": "blue eyes"}'), good()]])
    [row] = CaptionWriter(endpoint_stage(server, min_words=6), store).rows(rows, [measured("p00")])
    prompts = [body["messages"][0]["content"][-1]["text"] for body in server.seen]
    assert row["asked"] == 2
    assert "face: eyes" not in prompts[0]
    assert "- face: eyes" in prompts[1]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_paid_for_twice_however_often_it_fails(
    server: StubServer, store: Store, photos: Photos, seed: int
) -> None:
    rows = photos(14)
    dice = random.Random(seed)
    quality = [measured(row["id"]) for row in rows]
    stage = endpoint_stage(server, attempts=1, concurrency=3)
    paid: list[str] = []
    real = server.reply_to

    def flaky(path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        reply = real(path, body, headers)
        if dice.random() < 0.5:
            return Reply("", status=503)
        paid.append(json.dumps(body["messages"]))
        return reply

    server.reply_to = flaky  # type: ignore[method-assign]
    for _ in range(60):
        try:
            written = CaptionWriter(stage, store).rows(rows, quality)
            break
        except TransientError as error:
            assert "run the same command again" in str(error)
    else:
        pytest.fail("never finished")
    assert [row["status"] for row in written] == ["ok"] * 14
    assert len(paid) == len(set(paid)) == 14


def test_equal_photos_are_asked_about_once(server: StubServer, store: Store, tmp_path: Path) -> None:
    rows = [write_photo(tmp_path / f"{name}.png", 5) for name in ("a", "b", "c")]
    written = CaptionWriter(endpoint_stage(server), store).rows(rows, [measured(name) for name in "abc"])
    assert len(server.seen) == 1
    assert len({row["caption"] for row in written}) == 1


def test_what_costs_nothing_asks_nothing(server: StubServer, store: Store, photos: Photos) -> None:
    rows = photos(2)
    CaptionWriter(endpoint_stage(server), store).rows(rows, [measured(row["id"]) for row in rows])
    asked = len(server.seen)
    other = endpoint_stage(server, trigger="n3w", allow=("eyes",), max_words=70, concurrency=1, timeout_s=9.0)
    written = CaptionWriter(other, store).rows(rows, [measured(row["id"], "close") for row in rows])
    assert [row["caption"][:26] for row in written] == ["n3w person, close portrait"] * 2
    assert len(server.seen) == asked
    CaptionWriter(endpoint_stage(server, model="other"), store).rows(rows, [])
    assert len(server.seen) == asked + 2


def test_hand_captions_ask_nothing_and_win_in_order(
    server: StubServer, store: Store, photos: Photos, tmp_path: Path
) -> None:
    sidecar = tmp_path / "p00.txt"
    sidecar.write_text("\ufeffat the sea\nwith blue eyes\n", encoding="utf-8")
    rows = [row | {"caption": "from the table"} for row in photos(4)]
    rows[3]["caption"] = None
    edits = {"p00": "from the csv", "p01": "j4ne from the csv"}
    stage = endpoint_stage(server, sidecars={"p00": str(sidecar)}, edits=edits)
    written = {row["id"]: row for row in CaptionWriter(stage, store).rows(rows, [])}
    assert [written[f"p0{n}"]["caption_by"] for n in range(4)] == ["sidecar", "captions.csv", "table", "endpoint"]
    assert written["p00"]["caption"] == "j4ne, at the sea with blue eyes"
    assert written["p00"]["violations"] == ["face: eyes"]
    assert (written["p00"]["status"], written["p00"].get("caption_raw")) == ("ok", None)
    assert written["p01"]["caption"] == "j4ne from the csv"
    assert len(server.seen) == 1


def test_an_empty_sidecar_counts_as_none_and_a_binary_one_is_named(
    store: Store, photos: Photos, tmp_path: Path
) -> None:
    sidecar = tmp_path / "p00.txt"
    stage = stage_of(sidecars={"p00": str(sidecar)})
    sidecar.write_text(" \n", encoding="utf-8")
    [row] = CaptionWriter(stage, store).rows(photos(1), [measured("p00", pose="front")])
    assert (row["caption"], row["caption_by"]) == ("j4ne person, half body, facing the camera", "facts")
    sidecar.write_bytes("am Meer".encode("utf-16"))
    [row] = CaptionWriter(stage, store).rows(photos(1), [])
    assert row["caption"] == "j4ne, am Meer"
    sidecar.write_bytes(b"\xff\xfe\x00\xd8\x00")
    with pytest.raises(UserError, match=re.escape(str(sidecar))):
        CaptionWriter(stage, store).rows(photos(1), [])


def test_facts_need_no_store_and_say_what_they_cannot(store: Store, photos: Photos) -> None:
    rows = photos(2)
    quality = [measured("p00", "close", pose="left", light="dim", background="red"), measured("p01", None)]
    person = CaptionWriter(stage_of(), store).rows(rows, quality)
    assert person[0]["caption"] == "j4ne person, close portrait, turned left, dim light, red background"
    assert (person[1]["status"], person[1]["violations"]) == (
        "needs_review",
        ["refusal: nothing was measured in this photo, such as a face, that holds for all faces in it"],
    )
    style = CaptionWriter(stage_of("style"), store).rows(rows, quality)
    assert [row["caption"] for row in style] == ["j4ne, close portrait, turned left, red background", ""]
    edit = CaptionWriter(stage_of("edit"), store).rows(rows, quality)
    assert ["captions.instruction" in row["reason"] for row in edit] == [True, True]
    assert store.reused[STAGE] == store.computed[STAGE] == 0


def test_a_group_photo_is_said_to_be_what_all_its_faces_are(server: StubServer, store: Store, photos: Photos) -> None:
    [row] = photos(1)
    faces = [
        measured("p00", "close", pose="left", light="dim", background="red"),
        measured("p00", "full", pose="left", light="even", background="red") | {"face": 1},
    ]
    for quality in (faces, faces[::-1]):
        [written] = CaptionWriter(stage_of(), store).rows([row], quality)
        assert written["caption"] == "j4ne person, turned left, red background"
    [written] = CaptionWriter(endpoint_stage(server), store).rows([row], faces)
    assert written["caption"] == "j4ne person, standing, wearing a red coat, reading, a park, green trees background"
    [hand] = CaptionWriter(endpoint_stage(server, edits={"p00": "full body, outdoors"}), store).rows([row], faces)
    assert hand["violations"] == []


def test_edit_sends_all_pictures_in_order(server: StubServer, store: Store, tmp_path: Path) -> None:
    source, reference, target = (write_photo(tmp_path / f"{name}.png", n) for n, name in enumerate("abc"))
    pair = {
        "id": "one",
        "source_path": source["path"],
        "target_path": target["path"],
        "reference_paths": [reference["path"]],
        "caption": None,
        "repeats": 1,
        "sha256": target["sha256"],
        "source_sha256": source["sha256"],
        "reference_sha256s": [reference["sha256"]],
        **dict.fromkeys(("width_px", "height_px", "source_width_px", "source_height_px"), 32),
        "status": "ok",
    }
    server.otherwise = Reply('{"change": "Replace the red wall with a blue one."}')
    [row] = CaptionWriter(endpoint_stage(server, "edit"), store).rows([pair], [])
    assert row["caption"] == "j4ne replace the red wall with a blue one"
    sent = [part["image_url"]["url"] for part in server.seen[0]["messages"][0]["content"][:-1]]
    assert sent == [data_uri(image, 768) for image in images_of(pair)]
    [row] = CaptionWriter(endpoint_stage(server, "edit", instruction="swap the wall"), store).rows([pair], [])
    assert (row["caption"], row["caption_by"]) == ("j4ne swap the wall", "instruction")
    assert len(server.seen) == 1


def test_settings_that_cannot_work_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match=r"captions\.instruction: recipe 'style'"):
        CaptionWriter(stage_of("style", instruction="x"), store)
    with pytest.raises(UserError, match=r"captions\.backend: unknown backend 'fact'; did you mean 'facts'"):
        CaptionWriter(stage_of(backend="fact"), store).rows(
            [{"id": "a", "status": "ok"} | dict.fromkeys(("path", "sha256", "width_px", "height_px", "repeats"))], []
        )
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"backend": "endpoint"}, "url: missing"),
        ({"url": "localhost:8000"}, "url: not an address"),
        ({"url": "http://me:key@host"}, "api_key_env"),
        ({"url": "http://host/v1?key=abc"}, "api_key_env"),
        ({"min_words": 9, "max_words": 8}, "min_words: 9"),
    ]
    for settings, said in wrong:
        with pytest.raises(ValidationError, match=said):
            stage_of(**settings)


def test_rows_that_are_not_ok_are_left_out(store: Store, photos: Photos) -> None:
    rows = photos(2)
    rows[0]["status"] = "truncated"
    assert [row["id"] for row in CaptionWriter(stage_of(), store).rows(rows, [])] == ["p01"]
