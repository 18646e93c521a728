"""The decision against planted truth: 628 pairs with known defects, and each rule on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.phases.fabricate import GOOD, World, names_kept, row_for

from likeness.config.quality import QualityLimits
from likeness.errors import UserError
from likeness.phases.decide import Decision, HeldOut
from likeness.tables import DECISIONS, HOLDOUT, MANIFEST, table_of, write_table

# Column, values when planted grossly (lost in phase 2) and mildly (lost in phase 3).
DEFECTS: dict[str, tuple[str, float, float]] = {
    "hair": ("hair_delta_e", 26.0, 9.0),
    "skin": ("skin_delta_e", 18.0, 6.0),
    "shift": ("shift_px", 5.0, 0.9),
    "identity": ("pair_identity", 0.1, 0.55),
    "no_change": ("change", 0.0005, 0.012),
}
PHASES: dict[str, dict[str, Any]] = {
    "broad": {},
    "narrow": {
        "where": "hair_delta_e < 15 and skin_delta_e < 10 and shift_px < 2 and pair_identity > 0.35 and change > 0.004"
    },
    "clean": {
        "where": "hair_delta_e < 6 AND skin_delta_e < 4 AND shift_px < 0.5 AND pair_identity > 0.65 AND change > 0.02",
        "order_by": "skin_delta_e",
        "top": 76,
    },
}
NO_LIMITS = QualityLimits(**dict.fromkeys(QualityLimits.model_fields, None) | {"keep_near_duplicates": False})  # type: ignore[arg-type]


def planted_pairs() -> tuple[World, dict[str, str], dict[str, str]]:
    """628 pairs: 76 clean, 62 with a mild and 490 with a gross defect, in mixed order; truth by name."""
    rng = np.random.default_rng(628)
    world, gross, mild = World("pairs"), {}, {}
    fates = ["clean"] * 76 + ["mild"] * 62 + ["gross"] * 490
    for index, fate in enumerate(rng.permutation(fates)):
        name = f"pair-{index:03d}"
        measures = {
            "hair_delta_e": rng.uniform(0, 5),
            "skin_delta_e": rng.uniform(0, 3.5),
            "shift_px": rng.uniform(0, 0.4),
            "pair_identity": rng.uniform(0.7, 0.95),
            "change": rng.uniform(0.03, 0.1),
        }
        if fate != "clean":
            defect = str(rng.choice(list(DEFECTS)))
            column, much, little = DEFECTS[defect]
            measures[column] = much if fate == "gross" else little
            (gross if fate == "gross" else mild)[name] = defect
        world.add(name, **measures)
    return world, gross, mild


@pytest.fixture(scope="module")
def planted() -> tuple[World, dict[str, str], dict[str, str], Decision]:
    world, gross, mild = planted_pairs()
    return world, gross, mild, world.decide(PHASES, limits=NO_LIMITS)


def test_628_pairs_become_138_and_then_76_without_a_defect(planted) -> None:
    _, gross, mild, decision = planted
    assert [len(decision.manifests[name]) for name in PHASES] == [628, 138, 76]
    assert not set(names_kept(decision, "clean")) & (set(gross) | set(mild))
    assert not set(names_kept(decision, "narrow")) & set(gross)


def test_each_drop_names_its_planted_defect(planted) -> None:
    _, gross, mild, decision = planted
    for phase, planted_there in (("narrow", gross), ("clean", mild)):
        for name, defect in planted_there.items():
            row = row_for(decision, name, phase)
            column = DEFECTS[defect][0]
            assert (row["kept"], row["rule"]) == (False, "where"), row
            assert row["reason"].count(column) == 1, row
            assert not any(other in row["reason"] for other, _, _ in DEFECTS.values() if other != column), row
            assert row["value"] in DEFECTS[defect][1:] and row["threshold"] is not None
    for name, defect in gross.items():
        row = row_for(decision, name, "clean")
        assert row["rule"] == "earlier_phase" and DEFECTS[defect][0] in row["reason"]


def test_default_limits_name_the_gross_defects_themselves(planted) -> None:
    world, gross, mild, _ = planted
    decision = world.decide(PHASES)
    assert [len(decision.manifests[name]) for name in PHASES] == [138, 138, 76]
    for name, defect in gross.items():
        row = row_for(decision, name, "broad")
        assert row["rule"] == DEFECTS[defect][0] and row["value"] == DEFECTS[defect][1]
    assert all(row_for(decision, name, "broad")["kept"] for name in mild)


def test_phases_nest_and_the_order_is_that_of_order_by(planted) -> None:
    world, _, _, decision = planted
    broad, narrow, clean = (names_kept(decision, phase) for phase in PHASES)
    assert set(clean) < set(narrow) < set(broad)
    skin = {row["id"]: row["skin_delta_e"] for row in world.quality}
    assert [skin[name] for name in clean] == sorted(skin[name] for name in clean)


def test_held_out_pairs_are_clean_and_in_no_phase(planted) -> None:
    world, _, _, before = planted
    decision = world.decide(PHASES, limits=NO_LIMITS, held_out=4)
    held = {row["sample_id"] for row in decision.holdout}
    assert len(held) == 4 and {row["use"] for row in decision.holdout} == {"held_out"}
    assert not any(row["sample_id"] in held for rows in decision.manifests.values() for row in rows)
    assert held <= {row["sample_id"] for row in before.manifests["clean"]}
    held_names = {row["id"] for row in decision.decisions if row["sample_id"] in held}
    assert all(row_for(decision, name, phase)["rule"] == "held_out" for name in held_names for phase in PHASES)


def as_bytes(decision: Decision, folder: Path) -> dict[str, bytes]:
    """The files of manifests and holdout."""
    written = {}
    for name, rows in decision.manifests.items():
        write_table(folder / name, MANIFEST, rows)
        written[name] = (folder / name).read_bytes()
    write_table(folder / "holdout", HOLDOUT, decision.holdout)
    return written | {"holdout": (folder / "holdout").read_bytes()}


@pytest.mark.parametrize("held_out", [0, 3])
def test_a_change_of_an_unselected_pair_leaves_every_manifest_alone(tmp_path: Path, held_out: int) -> None:
    world, gross, _ = planted_pairs()
    before = as_bytes(world.decide(PHASES, held_out=held_out), tmp_path)
    for number, name in enumerate(sorted(gross)[:12]):
        world.change(name, "captions", caption=f"another line {number}")
        world.change(name, "images", sha256=f"{number:064x}")
        world.change(name, "quality", brightness=10.0 + number, sharpness=900.0)
    assert as_bytes(world.decide(PHASES, held_out=held_out), tmp_path) == before
    selected = names_kept(world.decide(PHASES, held_out=held_out), "clean")[5]
    world.change(selected, "captions", caption="another line")
    after = as_bytes(world.decide(PHASES, held_out=held_out), tmp_path)
    assert after["clean"] != before["clean"] and (held_out == 0) == (after["holdout"] != before["holdout"])


def test_names_and_order_of_the_tables_do_not_matter_for_manifests(tmp_path: Path) -> None:
    world, _, _ = planted_pairs()
    before = as_bytes(world.decide(PHASES, held_out=3), tmp_path)
    for table in (world.images, world.faces, world.masks, world.quality, world.captions):
        for row in table:
            row["id"] = "renamed-" + row["id"][::-1]
        table.reverse()
    assert as_bytes(world.decide(PHASES, held_out=3), tmp_path) == before


def test_ties_break_by_the_picture() -> None:
    world = World()
    for index in range(9):
        world.add(f"photo-{index}", sharpness=300.0)
    decision = world.decide({"main": {"order_by": "sharpness DESC", "top": 4}})
    pictures = sorted(row["sha256"] for row in world.images)
    assert [row["image_sha256"] for row in decision.manifests["main"]] == pictures[:4]
    dropped = [row for row in decision.decisions if not row["kept"]]
    assert [row["rule"] for row in dropped] == ["top"] * 5 and {row["threshold"] for row in dropped} == {4.0}


@pytest.mark.parametrize("phase", [{"balance": {"close": 0.5, "half": 0.5}, "balance_tolerance": 0.0}, {"top": 6}])
@pytest.mark.parametrize("order_by", [{}, {"order_by": "sharpness"}])
def test_an_edited_caption_of_a_sample_left_over_exchanges_none(phase: dict, order_by: dict) -> None:
    world = World()
    for index in range(8):
        world.add(f"photo-{index}", framing="close" if index < 5 else "half")
    first = world.decide({"main": phase | order_by})
    left = {row["id"] for row in first.decisions} - {*names_kept(first)}
    assert len(left) == 2
    for name in left:
        for line in range(8):
            world.change(name, "captions", caption=f"line {line}")
            assert world.decide({"main": phase | order_by}).manifests == first.manifests


def test_sample_ids_hang_on_image_mask_references_and_caption_only() -> None:
    world = World("pairs")
    world.add("a")
    first = world.decide().manifests["main"][0]["sample_id"]
    world.change("a", "quality", sharpness=111.0)
    assert world.decide().manifests["main"][0]["sample_id"] == first
    for table, values in (
        ("images", {"sha256": "0" * 64}),
        ("images", {"source_sha256": "1" * 64}),
        ("images", {"reference_sha256s": ["2" * 64]}),
        ("masks", {"mask_sha256": "3" * 64}),
        ("captions", {"caption": "else"}),
    ):
        world.change("a", table, **values)
        second = world.decide().manifests["main"][0]["sample_id"]
        assert second != first, (table, values)
        first = second
    row = world.decide().manifests["main"][0]
    assert row["reference_sha256s"] == ["1" * 64, "2" * 64] and row["mask_sha256"] == "3" * 64


def test_small_crops_drop_pairs_only_since_photos_are_trained_on_whole() -> None:
    for kind, kept in (("photos", True), ("pairs", False)):
        world = World(kind)
        world.add("far", found={"status": "small_face", "reason": "few pixels"})
        row = row_for(world.decide(), "far")
        assert (row["kept"], row["rule"]) == (kept, "kept" if kept else "small_face")


def test_a_blurred_photo_is_called_blurred_and_not_another_person() -> None:
    world = World()
    world.add("soft", sharpness=5.0, found={"subject_cosine": 0.1, "status": "other_person"})
    assert row_for(world.decide(), "soft")["rule"] == "sharpness"


SINGLE_RULES: list[tuple[str, dict[str, Any]]] = [
    ("status", {"image": {"status": "truncated", "reason": "damaged", "sha256": None}}),
    ("duplicate", {"image": {"status": "duplicate", "reason": "same bytes"}}),
    ("no_face", {"measures": {"face": None}}),
    ("identity", {"found": {"subject_cosine": 0.1, "status": "other_person"}}),
    ("identity", {"found": {"subject_cosine": None}, "measures": {"identity_cosine": 0.2}}),
    ("face_px", {"measures": {"face_px": 20.0}}),
    ("sharpness", {"measures": {"sharpness": 5.0}}),
    ("clipped", {"measures": {"clipped": 0.6}}),
    ("yaw_deg", {"measures": {"yaw_deg": -70.0}}),
    ("caption", {"caption": {"status": "needs_review", "reason": "face words"}}),
    ("caption", {"caption": {"caption": "", "status": "refused"}}),
]


@pytest.mark.parametrize(("rule", "plant"), SINGLE_RULES)
def test_each_rule_drops_its_own_defect_and_nothing_else(rule: str, plant: dict[str, Any]) -> None:
    world = World()
    world.add("good")
    given = {key: plant[key] for key in ("image", "found", "caption") if key in plant}
    world.add("bad", **given, **plant.get("measures", {}))
    decision = world.decide(limits=QualityLimits(max_yaw_deg=60))
    row = row_for(decision, "bad")
    assert (row["kept"], row["rule"], row["position"]) == (False, rule, None)
    assert row["reason"]
    assert names_kept(decision) == ["good"]
    assert table_of(DECISIONS, decision.decisions).num_rows == 2


def test_a_missing_mask_drops_only_where_a_mask_is_trained_with() -> None:
    world = World()
    world.add("good")
    world.add("bare")
    world.change("bare", "masks", status="failed", mask_sha256=None)
    assert row_for(world.decide(), "bare")["rule"] == "mask"
    assert names_kept(world.decide(mask_kind=None), "main") != []
    assert row_for(world.decide(mask_kind=None), "bare")["kept"]


def test_style_needs_no_face_and_knows_no_other_person() -> None:
    world = World()
    world.add("landscape", face=None)
    world.add("stranger", found={"subject_cosine": -0.2, "status": "other_person"})
    assert len(names_kept(world.decide(recipe="style", mask_kind=None))) == 2
    assert names_kept(world.decide()) == []


def test_near_duplicates_leave_the_sharpest_that_is_usable() -> None:
    world = World()
    for rank, name in enumerate(("sharpest", "second", "third")):
        world.add(name, image={"near_duplicate_group": "g"}, near_duplicate_rank=rank)
    assert names_kept(world.decide()) == ["sharpest"]
    assert row_for(world.decide(), "third")["rule"] == "near_duplicate"
    assert names_kept(world.decide(never=("sharpest",))) == ["second"]
    assert names_kept(world.decide(always=("third",))) == ["third"]
    assert len(names_kept(world.decide(limits=QualityLimits(keep_near_duplicates=True)))) == 3


def blurred_and_sharp(**blurred: Any) -> World:
    """Two near duplicates, a blurred and b sharp."""
    world = World()
    world.add("a", image={"near_duplicate_group": "g"}, near_duplicate_rank=1, sharpness=1.0, **blurred)
    world.add("b", image={"near_duplicate_group": "g"}, near_duplicate_rank=0)
    return world


def test_always_of_one_phase_costs_no_other_phase_the_good_near_duplicate() -> None:
    decision = blurred_and_sharp().decide({"broad": {}, "best": {"always": ("a",)}})
    assert (names_kept(decision, "broad"), names_kept(decision, "best")) == (["b"], ["a"])
    assert row_for(decision, "a", "broad")["rule"] == "sharpness"
    assert row_for(decision, "b", "best")["reason"] == "a near duplicate of a, which is kept"
    turned = blurred_and_sharp().decide({"broad": {"always": ("a",)}, "best": {"nested": False}})
    assert (names_kept(turned, "broad"), names_kept(turned, "best")) == (["a"], ["b"])


def test_always_that_cannot_keep_a_photo_says_so_and_costs_no_near_duplicate() -> None:
    decision = blurred_and_sharp(caption={"caption": "", "status": "refused"}).decide(always=("a",))
    assert names_kept(decision) == ["b"]
    row = row_for(decision, "a")
    assert (row["rule"], row["reason"]) == ("caption", "always cannot keep it: it has no caption")
    world = World()
    world.add("nobody", face=None, caption={"caption": "", "status": "no_face", "reason": "no face to describe"})
    row = row_for(world.decide(always=("nobody",)), "nobody")
    assert (row["rule"], row["reason"]) == ("caption", "always cannot keep it: no face to describe")


def test_never_of_a_phase_leaves_it_the_next_best_near_duplicate() -> None:
    world = blurred_and_sharp()
    world.change("a", "quality", sharpness=300.0)
    decision = world.decide({"broad": {"never": ("b",)}, "all": {"nested": False}})
    assert (names_kept(decision, "broad"), names_kept(decision, "all")) == (["a"], ["b"])


@pytest.mark.parametrize("keep_near_duplicates", [False, True])
def test_a_near_duplicate_of_what_always_keeps_is_not_held_out(keep_near_duplicates: bool) -> None:
    limits = QualityLimits(keep_near_duplicates=keep_near_duplicates)
    for before in ([], [HeldOut("b", "")]):
        world = blurred_and_sharp()
        world.add("c")
        decision = world.decide({"broad": {}, "best": {"always": ("a",)}}, before, held_out=1, limits=limits)
        assert "a" in names_kept(decision, "best") and "b" in names_kept(decision, "broad")
        assert [held.id for held in decision.held] == ["c"]


def test_near_duplicates_of_a_held_out_photo_are_never_trained_on() -> None:
    world = World()
    for index in range(6):
        world.add(f"a-{index}", image={"near_duplicate_group": f"g-{index // 2}"}, near_duplicate_rank=index % 2)
    decision = world.decide(held_out=1, limits=QualityLimits(keep_near_duplicates=True))
    assert len(decision.holdout) == 1 and len(decision.manifests["main"]) == 4
    held = [row for row in decision.decisions if row["rule"] == "held_out"]
    assert len({row["id"][:2] + str(int(row["id"][2]) // 2) for row in held}) == 1 and len(held) == 2


def test_always_and_never_by_hand() -> None:
    world = World()
    world.add("blurred", sharpness=1.0)
    world.add("good")
    world.add("unwanted")
    world.add("broken", image={"status": "truncated", "sha256": None, "reason": "damaged"})
    decision = world.decide(always=("blurred", "broken"), never=("unwanted",))
    assert sorted(names_kept(decision)) == ["blurred", "good"]
    assert row_for(decision, "blurred")["rule"] == "always" and "sharpness" in row_for(decision, "blurred")["reason"]
    assert row_for(decision, "broken")["rule"] == "status"
    assert row_for(decision, "broken")["reason"] == "always cannot keep it: damaged"
    assert row_for(decision, "unwanted")["rule"] == "never"
    phases = {"first": {"never": ("good",)}, "second": {"always": ("good",), "where": "false"}}
    decision = world.decide(phases)
    assert names_kept(decision, "second") == ["good"]
    assert row_for(decision, "good", "second")["rule"] == "always"


def test_a_name_that_no_photo_has_is_an_error_with_the_nearest() -> None:
    world = World()
    world.add("beach-img-01")
    with pytest.raises(UserError, match=r"phases\.main\.always.*'beach-img-1'.*did you mean 'beach-img-01'"):
        world.decide({"main": {"always": ("beach-img-1",)}})
    with pytest.raises(UserError, match="in both"):
        world.decide(always=("beach-img-01",), never=("beach-img-01",))
    with pytest.raises(UserError) as raised:
        phase = {"never": ("beach-img-02", "beach-img-01.webp"), "always": ("beach-img-02",)}
        world.decide({"main": phase}, always=("nobody", "beach-img-01"), never=("beach-img-01",))
    lines = str(raised.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "always and never",
        "always",
        "phases.main.always and phases.main.never",
        "phases.main.always",
        "phases.main.never",
        "phases.main.never",
    ]
    assert "'beach-img-01.webp'; did you mean 'beach-img-01'?" in lines[-1]


def test_phases_that_do_not_nest_draw_from_all_usable() -> None:
    world = World()
    for index in range(6):
        world.add(f"p{index}", framing="close" if index < 3 else "full")
    phases = {"close": {"where": "framing = 'close'"}, "full": {"where": "framing = 'full'", "nested": False}}
    decision = world.decide(phases)
    assert sorted(names_kept(decision, "full")) == ["p3", "p4", "p5"]
    nested = world.decide({**phases, "full": {"where": "framing = 'full'"}})
    assert names_kept(nested, "full") == [] and any("keeps no sample" in line for line in nested.warnings)


def test_held_out_photos_show_a_face_under_different_lights() -> None:
    world = World()
    for index in range(12):
        world.add(f"p{index}", framing=("close", "half", "full")[index % 3], light_cluster=index % 2)
    decision = world.decide(held_out=4)
    by_id = {row["sample_id"]: row["id"] for row in decision.decisions}
    held = [next(q for q in world.quality if q["id"] == by_id[row["sample_id"]]) for row in decision.holdout]
    assert {row["framing"] for row in held} <= {"close", "half"}
    assert sorted(row["light_cluster"] for row in held) == [0, 0, 1, 1]


def test_at_most_half_is_held_out_with_a_warning() -> None:
    world = World()
    for index in range(3):
        world.add(f"p{index}")
    decision = world.decide(held_out=5)
    assert (len(decision.holdout), len(decision.manifests["main"])) == (1, 2)
    assert any("held_out" in line for line in decision.warnings)


def test_nothing_held_out_lists_the_selected_as_references() -> None:
    world = World()
    for index in range(3):
        world.add(f"p{index}", sharpness=500.0 if index else 1.0)
    decision = world.decide()
    assert {row["use"] for row in decision.holdout} == {"reference"}
    assert {row["sample_id"] for row in decision.holdout} == {row["sample_id"] for row in decision.manifests["main"]}


def test_thirds_are_balanced_to_the_largest_set() -> None:
    world = World()
    for framing, count in (("close", 12), ("half", 5), ("full", 4)):
        for index in range(count):
            world.add(f"{framing}-{index}", framing=framing, sharpness=400.0 - index)
    thirds = {"close": 1 / 3, "half": 1 / 3, "full": 1 / 3}
    phase = {"balance": thirds, "balance_tolerance": 0.0, "order_by": "sharpness DESC"}
    decision = world.decide({"main": phase})
    assert sorted(names_kept(decision)) == sorted(f"{f}-{i}" for f in thirds for i in range(4))
    assert row_for(decision, "close-4")["rule"] == "balance"
    capped = world.decide({"main": {**phase, "top": 6}})
    assert sorted(names_kept(capped)) == sorted(f"{f}-{i}" for f in thirds for i in range(2))
    assert row_for(capped, "close-3")["rule"] == "top" and row_for(capped, "close-4")["rule"] == "balance"
    kept = names_kept(world.decide({"main": {**phase, "always": ("close-11",)}}))
    assert "close-11" in kept and len(kept) == 12


@pytest.mark.parametrize("balance", [None, {"close": 1 / 3, "half": 1 / 3, "full": 1 / 3}])
def test_top_counts_those_kept_by_hand_with_balance_as_without(balance: dict[str, float] | None) -> None:
    world = World()
    for framing, count in (("close", 8), ("half", 5), ("full", 4)):
        for index in range(count):
            world.add(f"{framing}-{index}", framing=framing, sharpness=400.0 - index)
    by_hand = tuple(f"close-{index}" for index in range(4, 8))
    phase = {"balance": balance, "balance_tolerance": 0.0, "order_by": "sharpness DESC", "always": by_hand}
    kept = {top: names_kept(world.decide({"main": {**phase, "top": top}})) for top in range(1, 13)}
    assert all({*by_hand} <= {*names} for names in kept.values())
    assert [len(kept[top]) for top in (1, 3, 4, 6)] == [4, 4, 4, 6]
    assert all(len(names) <= max(top, 4) for top, names in kept.items()) and len(kept[12]) == 12
    if balance:
        assert sorted({*kept[6]} - {*by_hand}) == ["full-0", "half-0"]


def test_balance_says_what_it_misses_in_a_sample() -> None:
    world = World()
    for name, framing in (("near", "close"), ("nearer", "close"), ("far", "full"), ("odd", None)):
        world.add(name, framing=framing)
    world.add("middle", framing="half")
    decision = world.decide({"main": {"balance": {"close": 0.5, "half": 0.5}, "balance_tolerance": 0.0}})
    reasons = {row["id"]: row["reason"] for row in decision.decisions if row["rule"] == "balance"}
    assert reasons["odd"] == "its framing is unknown, so that it counts for no wished share"
    assert reasons["far"] == "no share is wished for framing full"
    assert sorted(reasons.values())[0] == "enough samples of framing close for the wished shares"


def test_what_was_held_out_stays_so_under_a_new_name_or_with_new_bytes() -> None:
    world = World()
    for index in range(10):
        world.add(f"photo-{index}")
    first = world.decide(held_out=2).held
    bytes_changed, renamed = first
    world.change(bytes_changed.id, "images", sha256="9" * 64)
    world.rename(renamed.id, "another-name")
    stays = decide_again(world, first)
    assert [held.id for held in stays] == [bytes_changed.id, "another-name"]
    assert stays[0].image_sha256 == "9" * 64 and stays[1].image_sha256 == renamed.image_sha256


def test_a_held_out_photo_that_is_gone_or_unusable_is_replaced() -> None:
    world = World()
    for index in range(10):
        world.add(f"photo-{index}")
    first = world.decide(held_out=2).held
    world.change(first[0].id, "quality", sharpness=1.0)
    again = decide_again(world, first)
    assert again[0].id == first[1].id and len(again) == 2 and first[0].id not in {held.id for held in again}


def test_undoing_an_edit_brings_back_what_was_held_out_and_with_it_the_manifests() -> None:
    world = World()
    for index in range(10):
        world.add(f"photo-{index}")
    first = world.decide(held_out=2)
    gone = first.held[0].id
    world.change(gone, "quality", sharpness=1.0)
    edited = world.decide(held_out=2, held_before=first.remembered)
    assert gone not in {held.id for held in edited.held} and edited.manifests != first.manifests
    world.change(gone, "quality", sharpness=GOOD["sharpness"])
    undone = world.decide(held_out=2, held_before=edited.remembered)
    assert undone.held == first.held and undone.manifests == first.manifests
    assert [held.id for held in undone.remembered] == [held.id for held in edited.remembered]
    fewer = world.decide(held_out=1, held_before=undone.remembered)
    assert world.decide(held_out=2, held_before=fewer.remembered).manifests == first.manifests


def decide_again(world: World, held_before: list[HeldOut]) -> list[HeldOut]:
    return world.decide(held_out=2, held_before=held_before).held
