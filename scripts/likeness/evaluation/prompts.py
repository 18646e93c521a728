"""What is drawn for every checkpoint: prompts × seeds, each in the half that selects or in the half that reports.

An image belongs to the select half when both its prompt and its seed do, and to the report half when both do; the
mixed combinations are not drawn. A prompt's own `split` counts first, and the shipped seeds have theirs; every other
prompt, seed and held-out pair goes where the hash of its key sends it, so that adding one moves no other. Only when
that leaves a half empty does the entry with the largest hash change sides.

For an edit the held-out pairs are the prompts; pairs of one source share a half and a cluster of the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likeness.config.evaluation import Prompt
from likeness.errors import UserError
from likeness.store import sha256_of_bytes

SELECT, REPORT = "select", "report"
SHIPPED_SEEDS = {1: SELECT, 2: SELECT, 3: REPORT, 4: REPORT}


@dataclass(frozen=True)
class GridPoint:
    """One image to draw: a prompt (or a held-out pair) with one seed.

    `prompt` is the text as it is encoded. `source_id`, `reference_sha256s` (the source first), `target_sha256` and
    `mask_sha256` (of the target) are an edit's. Width and height in px, as drawn.
    """

    prompt_id: str
    kind: str
    prompt: str
    seed: int
    split: str
    width_px: int
    height_px: int
    source_id: str = ""
    reference_sha256s: tuple[str, ...] = ()
    target_sha256: str | None = None
    mask_sha256: str | None = None

    @property
    def noise_key(self) -> str:
        """What the initial noise depends on beside the seed and the size."""
        return "\n".join((self.prompt, *self.reference_sha256s))


SizeOf = Callable[[Mapping[str, Any]], tuple[int, int]]
"""From the row of a pair (pairs table) to the size (width, height) in px at which its edit is drawn."""


def photo_grid(
    prompts: Mapping[str, Prompt],
    seeds: Sequence[int],
    trigger: str,
    class_word: str,
    size_px: tuple[int, int],
) -> list[GridPoint]:
    """Make the images of a character or style; `size_px` is (width, height). Raises UserError without a subject prompt."""
    if not any(prompt.kind == "subject" for prompt in prompts.values()):
        raise UserError(
            "prompts: there is none of kind `subject`, so nothing can be measured. "
            'Add one such as `garden: "{trigger} {class} in a garden"`, or remove the key to get the recipe\'s prompts.'
        )
    halves = halves_of_prompts(prompts)
    return [
        GridPoint(name, prompts[name].kind, fill(prompts[name].text, trigger, class_word), seed, half, *size_px)
        for name in sorted(prompts)
        for half in halves[name]
        for seed in seeds_of_half(seeds, half)
    ]


def edit_grid(
    holdout: Iterable[Mapping[str, Any]], pairs: Iterable[Mapping[str, Any]], seeds: Sequence[int], size_of: SizeOf
) -> list[GridPoint]:
    """Make the images of an edit from the held-out rows and the pairs table. Raises UserError when no pair is held out."""
    by_content = {_content(row): row for row in sorted(pairs, key=lambda row: row["id"], reverse=True)}
    held_out = [row for row in holdout if row["use"] == "held_out" and row["reference_sha256s"]]
    if not held_out:
        raise UserError(
            "held_out: no pair is held out, so an edit has nothing to be measured on. Set held_out to 2 or more and run again."
        )
    found = [(row, by_content[row["image_sha256"], *row["reference_sha256s"]]) for row in held_out]
    names: dict[str, str] = {}
    for row, pair in sorted(found, key=lambda entry: entry[1]["id"]):
        names.setdefault(row["reference_sha256s"][0], pair["id"])
    halves = shared_halves(dict.fromkeys(names))
    return [
        GridPoint(
            pair["id"],
            "subject",
            row["caption"],
            seed,
            half,
            *size_of(pair),
            source_id=names[row["reference_sha256s"][0]],
            reference_sha256s=tuple(row["reference_sha256s"]),
            target_sha256=row["image_sha256"],
            mask_sha256=row["mask_sha256"],
        )
        for row, pair in sorted(found, key=lambda entry: entry[1]["id"])
        for half in halves[row["reference_sha256s"][0]]
        for seed in seeds_of_half(seeds, half)
    ]


def _content(pair: Mapping[str, Any]) -> tuple[str, ...]:
    return (pair["sha256"], pair["source_sha256"], *(pair["reference_sha256s"] or ()))


def fill(text: str, trigger: str, class_word: str) -> str:
    """Put trigger and class word in their places."""
    return text.replace("{trigger}", trigger).replace("{class}", class_word)


def halves_of_prompts(prompts: Mapping[str, Prompt]) -> dict[str, tuple[str, ...]]:
    """Say for each prompt in which halves it is drawn; the kinds are split apart, each kind over both halves by itself.

    Only subject prompts are moved to fill an empty half: a single bleed prompt selects or reports, not both.
    """
    subject = {name: prompt.split for name, prompt in prompts.items() if prompt.kind == "subject"}
    others = {
        name: (prompt.split or hashed_half(name),) for name, prompt in prompts.items() if prompt.kind != "subject"
    }
    return {**shared_halves(subject), **others}


def shared_halves(splits: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    """Assign each key its half (its own, else by hash); a single key is drawn in both halves, with different seeds."""
    halves = {key: split or hashed_half(key) for key, split in splits.items()}
    if len(halves) == 1:
        return dict.fromkeys(halves, (SELECT, REPORT))
    return {key: (half,) for key, half in _both_filled(halves, splits).items()}


def _both_filled(halves: dict[str, str], splits: Mapping[str, str | None]) -> dict[str, str]:
    free = [key for key in halves if splits[key] is None] or list(halves)
    if halves and len(set(halves.values())) == 1:
        moved = max(free, key=lambda key: (sha256_of_bytes(key.encode()), key))
        halves = {**halves, moved: SELECT if halves[moved] == REPORT else REPORT}
    return halves


def halves_of_seeds(seeds: Sequence[int]) -> dict[int, str]:
    """Assign each seed its half: 1 and 2 select, 3 and 4 report, others by hash; no half stays empty of two seeds or more."""
    halves = {str(seed): SHIPPED_SEEDS.get(seed) or hashed_half(f"seed {seed}") for seed in seeds}
    filled = _both_filled(halves, dict.fromkeys(halves)) if len(halves) > 1 else halves
    return {int(seed): half for seed, half in filled.items()}


def seeds_of_half(seeds: Sequence[int], half: str) -> list[int]:
    """The seeds of one half, ascending."""
    return sorted(seed for seed, its_half in halves_of_seeds(seeds).items() if its_half == half)


def hashed_half(key: str) -> str:
    """Send a key to a half by its hash alone."""
    return REPORT if int(sha256_of_bytes(key.encode())[:8], 16) % 2 else SELECT
