"""Settings of surgery on finished LoRAs: candidates made of others, and what is measured of them and of the base.

The ablation of blocks, the crosstalk of two LoRAs, and the prompt-swap probe of the base's blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from likeness.config.base import ModelSource, Settings, one_or_many
from likeness.config.evaluation import ChoiceStage, ScoreStage
from likeness.config.placeholders import PromptText
from likeness.errors import nearest

if TYPE_CHECKING:
    from likeness.config.subject import Subject

SURGERY = "surgery"
"""The phase under which candidates of surgery stand in tables; their step is 0."""
BEST = "best"
FILE_ENDING = ".safetensors"
OTHER = "other"
"""What the modules outside of all blocks are called together."""
BLOCK_KEY = rf"(double|single)(\.\d+(-\d+)?)?|{OTHER}"
"""How blocks are written: one (`single.7`), a range (`double.0-3`), a whole kind, or `other` (outside of the blocks)."""


class Parent(Settings):
    """A LoRA to start from; as bare text: `best`, the path of a .safetensors file, or a variant's or entry's name."""

    variant: str | None = Field(
        default=None, description="A trained variant, or another surgery entry (then without phase and step)."
    )
    phase: str | None = Field(default=None, description="Its phase; null: the last one that the variant runs.")
    step: int | None = Field(default=None, ge=0, description="The checkpoint's step; null: the last one of the phase.")
    file: str | None = Field(default=None, description="A finished LoRA file instead, of any known format.")
    best: bool = Field(
        default=False, description="Instead, the best by the choice's rule among all checkpoints that no surgery made."
    )
    subject: str | None = Field(default=None, description="Instead, the LoRA that another subject publishes.")

    @model_validator(mode="after")
    def check_one_kind(self) -> Parent:
        if sum([self.variant is not None, self.file is not None, self.best, self.subject is not None]) != 1:
            raise ValueError("a parent is one of `variant`, `file`, `subject` and `best: true`")
        if self.variant is None and (self.phase is not None or self.step is not None):
            raise ValueError("`phase` and `step` belong to a `variant`")
        return self

    def __str__(self) -> str:
        if self.best:
            return BEST
        if self.file is not None:
            return self.file
        if self.subject is not None:
            return f"published by {self.subject}"
        parts = [self.variant, self.phase, None if self.step is None else f"step {self.step}"]
        return " ".join(part for part in parts if part)


def parent_from_text(value: Any) -> Any:
    """Let text stand for a parent."""
    if not isinstance(value, str):
        return value
    if value == BEST:
        return {"best": True}
    return {"file": value} if value.endswith(FILE_ENDING) else {"variant": value}


ParentChoice = Annotated[Parent, BeforeValidator(parent_from_text, json_schema_input_type=Parent | str)]


def check_ratio(value: Any) -> Any:
    """Explain why a ratio below 1, which some guides give, cannot be meant."""
    if isinstance(value, int | float) and value < 1:
        raise ValueError(
            f"{value:g} is below 1: the ratio is the largest singular value over the smallest that is kept, such as 20. "
            f"To keep that part of the norm write `frobenius: {value:g}`, of the sum of singular values `cumulative: {value:g}`"
        )
    return value


def check_block_keys(blocks: dict[str, float]) -> dict[str, float]:
    """Refuse keys that name no block of any model; whether the base has it is seen when it is opened."""
    for key in blocks:
        if not re.fullmatch(BLOCK_KEY, key):
            raise ValueError(f"{key!r} is no block; write `single.7`, `double.0-3`, `double`, `single` or `other`")
        first, _, last = key.partition(".")[2].partition("-")
        if last and int(first) > int(last):
            raise ValueError(f"{key!r} runs backwards, so it names no block; write the lower number first")
    return blocks


FIELDS_OF_METHOD: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "resize": (frozenset(), frozenset({"rank", "ratio", "frobenius", "cumulative", "rule"})),
    "merge": (frozenset(), frozenset({"weights", "combine", "density", "convention", "seed", "rank"})),
    "subtract": (frozenset({"background"}), frozenset({"alpha", "project"})),
    "average": (frozenset(), frozenset({"weights", "ema", "rank"})),
    "weigh-blocks": (frozenset({"blocks"}), frozenset()),
}
"""Method → keys that it needs, keys that it also takes; all take `method` and `of`."""

READ_BY_COMBINE: dict[str, frozenset[str]] = {
    "sum": frozenset(),
    "ties": frozenset({"density", "convention"}),
    "dare": frozenset({"density", "seed"}),
    "magnitude": frozenset({"density"}),
}
"""What each way to merge reads of the keys that only some of them do."""
WEIGHTS_TOLERANCE = 1e-9


class Surgery(Settings):
    """One candidate made of finished LoRAs, evaluated and compared like a checkpoint."""

    method: Literal["resize", "merge", "subtract", "average", "weigh-blocks"] = Field(
        description="resize: truncate ranks; merge: weighted sum, TIES or pruning; subtract: take a background LoRA "
        "away; average: mean of checkpoints; weigh-blocks: one weight a block."
    )
    of: Annotated[
        tuple[ParentChoice, ...],
        BeforeValidator(one_or_many, json_schema_input_type=tuple[ParentChoice, ...] | ParentChoice),
    ] = Field(min_length=1, description="The LoRA or LoRAs to start from.")
    rank: int | None = Field(
        default=None, ge=1, le=1024, description="Resize: largest rank; merge, average: truncate the result to it."
    )
    ratio: Annotated[float | None, BeforeValidator(check_ratio)] = Field(
        default=None, ge=1, description="Resize: keep singular values above the largest divided by this; not below 1."
    )
    frobenius: float | None = Field(
        default=None, gt=0, le=1, description="Resize: share of the Frobenius norm to keep in each module."
    )
    cumulative: float | None = Field(
        default=None, gt=0, le=1, description="Resize: share of the sum of singular values to keep in each module."
    )
    rule: Literal["minimal", "kohya"] = Field(
        default="minimal", description="Resize: the smallest rank that satisfies the threshold, or kohya's (one more)."
    )
    weights: tuple[float, ...] = Field(
        default=(), description="Merge, average: one weight a parent; none: 1 each for merge, equal shares for average."
    )
    ema: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Average: decay of a moving average over the parents, oldest first, instead of weights.",
    )
    combine: Literal["sum", "ties", "dare", "magnitude"] = Field(
        default="sum", description="Merge: exact weighted sum, TIES, DARE, or magnitude pruning; on deltas."
    )
    density: float = Field(default=0.2, gt=0, le=1, description="Merge by ties, dare, magnitude: share kept.")
    convention: Literal["peft", "mergekit"] = Field(
        default="peft", description="Merge by ties: whose meaning of weights (peft: signs of unweighted deltas)."
    )
    seed: int = Field(default=0, ge=0, description="Merge by dare: from which each module's draw follows.")
    background: ParentChoice | None = Field(default=None, description="Subtract: the LoRA to take away.")
    alpha: Annotated[
        tuple[float, ...], BeforeValidator(one_or_many, json_schema_input_type=tuple[float, ...] | float)
    ] = Field(
        default=(1.0,),
        min_length=1,
        description="Subtract: how much of it; several values make one candidate each, called `<name>-alpha-50` for 0.5.",
    )
    project: int | None = Field(
        default=None, ge=1, le=1024, description="Subtract: project out this many directions instead of subtracting."
    )
    blocks: Annotated[dict[str, float], AfterValidator(check_block_keys)] = Field(
        default_factory=dict,
        description="Weigh-blocks: weight by block (`single.7`, `double.0-3`, `double`, `single`, `other`); 1 elsewhere.",
    )

    @model_validator(mode="after")
    def check_fields(self) -> Surgery:
        needed, taken = FIELDS_OF_METHOD[self.method]
        fields = {name: field for name, field in type(self).model_fields.items() if not field.is_required()}
        given = {
            name
            for name, field in fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        }
        for name in sorted(given - needed - taken):
            raise ValueError(f"method {self.method!r} takes no `{name}`; it takes {', '.join(sorted(needed | taken))}")
        for name in sorted(needed - given):
            raise ValueError(f"method {self.method!r} needs `{name}`")
        several = self.method in ("merge", "average")
        if several == (len(self.of) == 1):
            raise ValueError(f"method {self.method!r} takes {'several parents' if several else 'one parent'} in `of`")
        if self.weights and len(self.weights) != len(self.of):
            raise ValueError(f"{len(self.weights)} weights for {len(self.of)} parents")
        if self.weights and self.ema is not None:
            raise ValueError("`weights` and `ema` exclude each other")
        unread = given & ({"density", "convention", "seed"} - READ_BY_COMBINE[self.combine])
        if unread:
            read = ", ".join(f"`{name}`" for name in sorted(READ_BY_COMBINE[self.combine])) or "none of them"
            raise ValueError(f"combine {self.combine!r} does not read `{min(unread)}`; it reads {read}")
        thresholds = [name for name in ("ratio", "frobenius", "cumulative") if getattr(self, name) is not None]
        if len(thresholds) > 1:
            raise ValueError(f"{' and '.join(thresholds)} exclude each other")
        if self.method == "resize" and self.rank is None and not thresholds:
            raise ValueError("method 'resize' needs `rank`, `ratio`, `frobenius` or `cumulative`")
        if self.rule == "kohya" and not thresholds:
            raise ValueError(
                "rule 'kohya' counts from a threshold; add `ratio`, `frobenius` or `cumulative`, or leave it out"
            )
        if self.project is not None and "alpha" in given:
            raise ValueError("`project` takes a whole subspace out, so `alpha` does not apply")
        labels = [alpha_label(value) for value in self.alpha]
        if len(set(labels)) < len(labels) or any(value < 0 for value in self.alpha):
            raise ValueError("alpha: values must not be negative and must differ by at least 0.01")
        return self

    @model_validator(mode="after")
    def check_weights(self) -> Surgery:
        if self.weights and self.method == "average" and abs(math.fsum(self.weights) - 1) > WEIGHTS_TOLERANCE:
            raise ValueError(f"weights: those of an average sum to 1, not to {math.fsum(self.weights):g}")
        if self.weights and not any(self.weights):
            raise ValueError("weights: all are 0, so the result would change nothing")
        return self

    @property
    def parents(self) -> tuple[Parent, ...]:
        """Everything that it is made of, in order; the background comes last."""
        return (*self.of, *([self.background] if self.background else []))

    def candidates(self, name: str) -> Iterator[tuple[str, Surgery]]:
        """The candidates that an entry stands for: one, or one a value of alpha."""
        if len(self.alpha) == 1:
            yield name, self
            return
        for value in self.alpha:
            yield f"{name}-alpha-{alpha_label(value)}", self.model_copy(update={"alpha": (value,)})


def surgery_mistakes(subject: Subject) -> list[str]:
    """What is wrong with names and parents of what a subject makes and measures; each line starts with its key."""
    wrong: list[str] = []
    candidates: dict[str, Surgery] = {}
    for name, entry in subject.surgery.items():
        for candidate, own in entry.candidates(name):
            if candidate in subject.variants or candidate in candidates:
                wrong.append(
                    f"surgery.{name}: {candidate!r} is also the name of another candidate or variant; rename it"
                )
            candidates.setdefault(candidate, own)
    for key, parent in parents_by_key(subject):
        text = _misfit(parent, subject)
        wrong += [f"{'.'.join(key)}: {text}"] if text else []
    return wrong or [
        f"surgery.{name}: it is made of itself, over {' and '.join(way)}" for name, way in _circles(candidates)
    ]


def parents_by_key(subject: Subject) -> list[tuple[tuple[str, ...], Parent]]:
    """Every LoRA that a subject's surgery and measurements start from, with the key under which it stands."""
    found = [((SURGERY, name), parent) for name, entry in subject.surgery.items() for parent in entry.parents]
    found += [(("ablation", name, "of"), entry.of) for name, entry in subject.ablation.items()]
    for name, entry in subject.crosstalk.items():
        found += [(("crosstalk", name, "of"), entry.of), (("crosstalk", name, "beside"), entry.beside)]
    return found


def strangers(subjects: Mapping[str, Subject]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(subject, key, mistake) of parents that are other subjects: unknown ones, the subject itself, and circles."""
    needs: dict[str, set[str]] = {name: set() for name in subjects}
    for name, subject in subjects.items():
        for key, parent in parents_by_key(subject):
            other = parent.subject
            if other is None:
                continue
            if other == name:
                yield name, key, f"{other!r} is this subject itself; name a variant, or `best`"
            elif other not in subjects:
                known = [one for one in subjects if one != name]
                yield name, key, f"no subject {other!r}; {nearest(other, known)}"
            elif key[0] == SURGERY:
                needs[name].add(other)
    for name in subjects:
        way = _way_back(name, needs)
        if way:
            yield name, (SURGERY,), f"what it publishes is made of what itself publishes, over {' and '.join(way)}"


def _way_back(start: str, needs: Mapping[str, set[str]]) -> list[str]:
    """Subjects on a way from one subject through what it needs back to itself; empty where there is none."""
    ways, seen = [[name] for name in sorted(needs[start])], set[str]()
    while ways:
        way = ways.pop(0)
        if way[-1] == start:
            return way[:-1] or way
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [[*way, name] for name in sorted(needs[way[-1]])]
    return []


def _misfit(parent: Parent, subject: Subject) -> str | None:
    """Why a parent cannot be found, or None."""
    name, made = parent.variant, subject.candidates
    if name is None:
        return None
    if name in made:
        is_whole = parent.phase in (None, SURGERY) and parent.step in (None, 0)
        return None if is_whole else f"{name!r} is made by surgery: it has no phases and no steps"
    if name in subject.surgery:
        several = ", ".join(candidate for candidate, _ in subject.surgery[name].candidates(name))
        return f"{name!r} makes several candidates; name one of {several}"
    if name not in subject.variants:
        return f"no variant {name!r}; {nearest(name, [*subject.trained_variants, *made])}"
    if subject.variants[name].lora:
        return f"{name!r} is a list of finished files; name the one that is meant by its path"
    phases = subject.phases_of(name)
    if parent.phase is not None and parent.phase not in phases:
        return f"variant {name!r} has no phase {parent.phase!r}; there are {', '.join(phases)}"
    training = subject.training_of(name, parent.phase or phases[-1])
    if parent.step is None or training.steps == "auto" or subject.variants[name].trainer:
        # Which steps there are is only known when the job looks at them.
        return None
    saved = training.saved_steps
    if parent.step not in saved:
        return f"no checkpoint of {name!r} is saved at step {parent.step}; there are {', '.join(map(str, saved))}"
    return None


def _circles(candidates: Mapping[str, Surgery]) -> Iterator[tuple[str, list[str]]]:
    """Candidates that are among their own parents, grandparents and so on, each with the way round."""

    def way(name: str, passed: tuple[str, ...]) -> list[str] | None:
        for parent in [parent.variant for parent in candidates[name].parents if parent.variant in candidates]:
            if parent == (passed or (name,))[0]:
                return [*passed, name]
            if parent is not None and parent not in (*passed, name):
                found = way(parent, (*passed, name))
                if found:
                    return found
        return None

    for name in candidates:
        found = way(name, ())
        if found:
            yield name, found


def alpha_label(value: float) -> str:
    """Alpha in hundredths, as names may hold it."""
    return str(round(100 * value))


class Ablation(Settings):
    """Which blocks of a LoRA do the work: each block weighted down alone, and each block used alone."""

    of: ParentChoice = Field(description="The LoRA to take apart.")
    weights: tuple[float, ...] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0),
        min_length=1,
        description="Weights of the block under test; each costs one image a block, mode, prompt and seed.",
    )
    modes: tuple[Literal["knock-out", "knock-in"], ...] = Field(
        default=("knock-out", "knock-in"),
        min_length=1,
        description="knock-out: all other blocks stay at 1; knock-in: all other blocks are at 0.",
    )
    prompts: tuple[str, ...] = Field(
        default=(), description="Prompts of the select half to draw; none means all of them."
    )


class Crosstalk(Settings):
    """What two LoRAs do to each other: shared directions module by module, and what the metrics lose when both are on."""

    of: ParentChoice = Field(default={"best": True}, description="This subject's LoRA.")  # type: ignore[arg-type]
    beside: ParentChoice = Field(
        description="The other LoRA; of another subject (`{subject: sam}`) that one's metrics are measured as well."
    )
    method: Literal["sum", "k-lora", "masked"] = Field(
        default="sum",
        description="sum: both in full; k-lora: the other is the style, one of them a layer and step; masked: each within "
        "the place of its word.",
    )
    word: str | None = Field(
        default=None,
        min_length=1,
        description="Masked: the other LoRA's word in the prompts; null: the other subject's trigger.",
    )

    @model_validator(mode="after")
    def check_word(self) -> Crosstalk:
        if self.method == "masked" and self.word is None and self.beside.subject is None:
            raise ValueError("method 'masked' needs `word`: the word in the prompts that the other LoRA belongs to")
        if self.method != "masked" and self.word is not None:
            raise ValueError(f"method {self.method!r} does not take `word`; only 'masked' looks for a place")
        return self


class Probe(Settings):
    """Which blocks of the base take content and which take style from the prompt: another prompt in each block alone."""

    prompt: PromptText = Field(min_length=1, description="The prompt to start from; may contain {trigger} and {class}.")
    content: PromptText = Field(min_length=1, description="The same with something else in the picture.")
    style: PromptText = Field(min_length=1, description="The same, shown in another way.")
    seeds: tuple[int, ...] = Field(default=(1, 2), min_length=1, description="Seeds of the noise; each is drawn.")


class SurgeryStage(Settings):
    """The slice that make_surgery reads, for one candidate."""

    surgery: Surgery
    base_model: ModelSource
    choice: ChoiceStage
    offline: bool = True


class AblationStage(Settings):
    """The slice that ablate_lora reads, for one entry."""

    ablation: Ablation
    scoring: ScoreStage
    choice: ChoiceStage


class CrosstalkStage(Settings):
    """The slice that measure_crosstalk reads, for one entry; `scorings` are of the subject and of the other, if it is one."""

    crosstalk: Crosstalk
    scorings: tuple[ScoreStage, ...]
    choice: ChoiceStage


class ProbeStage(Settings):
    """The slice that probe_blocks reads, for one entry."""

    probe: Probe
    scoring: ScoreStage
