"""Decide what each phase trains on, what is held out, and say of every candidate why.

The order: a sample must be usable (`rules`), the best of its near duplicates, and in the phase before where phases
nest; then the phase's own `where`, `balance` and `top` apply. Held-out samples are drawn only from what the phases
would train on, by a hash of their image: so a change of a sample that no phase selects moves nothing, and an edited
caption does not swap what is held out. What was held out before stays so while its name or its bytes are still there:
scores before and after an edit are then taken against the same photos. Who had to be replaced takes the place again when it
comes back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from likeness.config.phases import DecisionStage, PhaseSettings
from likeness.errors import UserError, nearest
from likeness.phases.balance import balanced_counts
from likeness.phases.query import Answer, SampleQuery
from likeness.phases.rules import Drop, limits_of, untrainable, unusable
from likeness.phases.samples import Sample, sample_schema
from likeness.store import sha256_of_bytes
from likeness.tables import CANDIDATE

VERSION = 2
STAGE = "phases"


@dataclass
class PhaseDecision:
    """One phase: the names that it keeps, in order, and the drop of every other.

    `forced` are kept whatever a rule says, `by_hand` those of them that a rule would have dropped.
    """

    kept: list[str]
    drops: dict[str, Drop]
    by_hand: dict[str, Drop] = field(default_factory=dict)
    forced: frozenset[str] = frozenset()


@dataclass(frozen=True)
class HeldOut:
    """One held-out sample: its name and the hash of its image, by which the next decision finds it again."""

    id: str
    image_sha256: str


@dataclass(frozen=True)
class Decision:
    """Rows for the manifests and candidates (by phase), the holdout and the decisions table, lines for the log, what is held out.

    A phase has either a manifest or, where the losses of a training will decide, candidates. What was held out once is
    `remembered` in its old order, for the next decision.
    """

    manifests: dict[str, list[dict[str, Any]]]
    candidates: dict[str, list[dict[str, Any]]]
    holdout: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    warnings: list[str]
    held: list[HeldOut]
    remembered: list[HeldOut]


@dataclass(frozen=True)
class Selector:
    """Selects the samples of all phases; `drops` are those before any choice, `answers` and `orders` what SQL says, by phase."""

    stage: DecisionStage
    samples: Sequence[Sample]
    drops: Mapping[str, Mapping[str, Drop]]
    answers: Mapping[str, Sequence[Answer]]
    orders: Mapping[str, Sequence[int]]

    def select(self, held_out: Mapping[str, Drop]) -> dict[str, PhaseDecision]:
        """Select all phases, in order, without the held-out samples."""
        decided: dict[str, PhaseDecision] = {}
        before: tuple[str, PhaseDecision] | None = None
        for name, phase in self.stage.phases.items():
            earlier = before if phase.nested else None
            decided[name] = self._select_phase(name, phase, held_out, earlier)
            before = (name, decided[name])
        return decided

    def _select_phase(
        self,
        name: str,
        phase: PhaseSettings,
        held_out: Mapping[str, Drop],
        earlier: tuple[str, PhaseDecision] | None,
    ) -> PhaseDecision:
        drops: dict[str, Drop] = {}
        for index, sample in enumerate(self.samples):
            drop = self.drops[name].get(sample.id) or self._drop_before_choice(sample, phase, held_out, earlier)
            answer = self.answers[name][index]
            if drop is None and not answer.holds:
                drop = where_drop(answer)
            if drop is not None:
                drops[sample.id] = drop
        ordered = [self.samples[index] for index in self.orders[name]]
        wanted = names_by_hand(self.stage, phase)
        impossible = {sample.id: drop for sample in ordered if sample.id in wanted and (drop := untrainable(sample))}
        drops |= {key: Drop(drop.rule, f"always cannot keep it: {drop.reason}") for key, drop in impossible.items()}
        forced = {sample.id for sample in ordered if sample.id in wanted - {*impossible} - {*held_out}}
        candidates = [sample for sample in ordered if sample.id in forced or sample.id not in drops]
        kept, choice_drops = choose(candidates, forced, phase)
        by_hand = {sample_id: drops.pop(sample_id) for sample_id in sorted(forced & set(drops))}
        return PhaseDecision([sample.id for sample in kept], drops | choice_drops, by_hand, frozenset(forced))

    def _drop_before_choice(
        self,
        sample: Sample,
        phase: PhaseSettings,
        held_out: Mapping[str, Drop],
        earlier: tuple[str, PhaseDecision] | None,
    ) -> Drop | None:
        if sample.id in phase.never:
            return Drop("never", "dropped by hand (never of this phase)")
        if sample.id in held_out:
            return held_out[sample.id]
        if earlier is not None and sample.id in earlier[1].drops:
            cause = earlier[1].drops[sample.id]
            return Drop(
                "earlier_phase",
                f"phase {earlier[0]} dropped it ({cause.rule}): {cause.reason}",
                cause.value,
                cause.threshold,
            )
        return None


def decide(samples: Sequence[Sample], stage: DecisionStage, held_before: Sequence[HeldOut] = ()) -> Decision:
    """Decide all phases and the holdout, keeping out what was `held_before` while it is still there and usable.

    Raises UserError for SQL that cannot be asked and for unknown names.
    """
    check_names(samples, stage)
    query = SampleQuery([sample.columns for sample in samples], sample_schema(stage.kind))
    broken = broken_rules(samples, stage)
    selector = Selector(
        stage=stage,
        samples=samples,
        drops={name: drops_before_choice(samples, stage, phase, broken) for name, phase in stage.phases.items()},
        answers={name: query.answers(phase.where, f"phases.{name}.where") for name, phase in stage.phases.items()},
        orders={name: query.ordered(phase.order_by, f"phases.{name}.order_by") for name, phase in stage.phases.items()},
    )
    wished = selector.select({})
    usable = [one for one in samples if any(one.id not in drops for drops in selector.drops.values())]
    kept_out = still_there(held_before, usable)
    held = hold_out(samples, wished, stage, kept_out)
    final = selector.select(held_out_drops(samples, held))
    by_name = {sample.id: sample for sample in samples}
    rows = {name: [by_name[key].manifest_row() for key in decided.kept] for name, decided in final.items()}
    manifests = {name: rows[name] for name in final if name not in stage.refined}
    candidates = {
        name: [
            row | {"always": key in final[name].forced} for key, row in zip(final[name].kept, rows[name], strict=True)
        ]
        for name in stage.refined
    }
    warnings = [f"phase {name} keeps no sample" for name, decided in final.items() if not decided.kept]
    if len(held) < stage.held_out:
        warnings.append(
            f"held_out asks for {stage.held_out}; only {len(held)} of {len(selected(wished))} samples are held out"
        )
    named = [HeldOut(name, by_name[name].image_sha256 or "") for name in held]
    reasons = decision_rows(samples, final, stage.refined)
    holdout, remembered = holdout_rows(by_name, held, wished), remember(held_before, samples, named)
    return Decision(manifests, candidates, holdout, reasons, warnings, named, remembered)


def still_there(held_before: Sequence[HeldOut], usable: Sequence[Sample]) -> list[Sample]:
    """Which usable samples were held out before: by their bytes under any name, else by their name."""
    found = [sample for sample in as_they_are(held_before, usable) if sample is not None]
    return list({sample.id: sample for sample in found}.values())


def as_they_are(held_before: Sequence[HeldOut], samples: Sequence[Sample]) -> list[Sample | None]:
    """For each that was held out the sample that it is now, or None where it is gone."""
    by_bytes = {sample.image_sha256: sample for sample in samples}
    by_name = {sample.id: sample for sample in samples}
    return [by_bytes.get(held.image_sha256) or by_name.get(held.id) for held in held_before]


def remember(held_before: Sequence[HeldOut], samples: Sequence[Sample], named: Sequence[HeldOut]) -> list[HeldOut]:
    """All that was ever held out, in its old order and as it is now, then what is held out for the first time.

    A sample that comes back, because an edit is undone, is then held out again before the one that stood in for it: the
    manifests are those of the day before.
    """
    found = zip(held_before, as_they_are(held_before, samples), strict=True)
    earlier = [HeldOut(now.id, now.image_sha256 or old.image_sha256) if now else old for old, now in found]
    return list({one.id: one for one in [*earlier, *named]}.values())


def check_names(samples: Sequence[Sample], stage: DecisionStage) -> None:
    """Refuse names in always and never that no photo or pair has, and names that are in both; all of them at once."""
    known = {sample.id for sample in samples}
    lists: list[tuple[str, Collection[str], Collection[str]]] = [("", stage.always, stage.never)]
    lists += [(f"phases.{name}.", phase.always, phase.never) for name, phase in stage.phases.items()]
    wrong: list[str] = []
    for place, always, never in lists:
        both = sorted({*always} & {*never})
        wrong += [f"{place}always and {place}never: {name!r} is in both. Remove one of them." for name in both]
        for key, names in (("always", always), ("never", never)):
            wrong += [
                f"{place}{key}: there is no {stage.kind[:-1]} {name!r}; {nearest(name, known)}"
                for name in names
                if name not in known
            ]
    if wrong:
        raise UserError("\n".join(wrong))


def names_by_hand(stage: DecisionStage, phase: PhaseSettings) -> set[str]:
    """What a phase keeps by hand: the subject's `always` and its own, without its own `never`."""
    return {*stage.always, *phase.always} - {*phase.never}


def broken_rules(samples: Sequence[Sample], stage: DecisionStage) -> dict[str, Drop]:
    """The drops that all phases share: the first rule that each sample breaks by itself."""
    limits = limits_of(stage.limits, stage.kind)
    return {sample.id: drop for sample in samples if (drop := unusable(sample, stage, limits))}


def drops_before_choice(
    samples: Sequence[Sample], stage: DecisionStage, phase: PhaseSettings, broken: Mapping[str, Drop]
) -> dict[str, Drop]:
    """The broken rules, copies of a sample, and all but the best near duplicate of those that the phase may keep.

    A sample kept by hand is the best of its near duplicates, in the phases that keep it alone.
    """
    drops = dict(broken)
    by_hand = names_by_hand(stage, phase)
    wanted = {sample.id for sample in samples if sample.id in by_hand and not untrainable(sample)}

    def preference(sample: Sample) -> tuple[bool, int, str, str, str]:
        rank = 2**31 if sample["near_duplicate_rank"] is None else sample["near_duplicate_rank"]
        return (sample.id not in wanted, rank, sample.image_sha256 or "", sample.sample_id or "", sample.id)

    first_of: dict[tuple[str, Any], Sample] = {}
    for sample in sorted(samples, key=preference):
        if (sample.id in drops or sample.id in phase.never) and sample.id not in wanted:
            continue
        keys = [("duplicate", sample.sample_id)]
        if sample["near_duplicate_group"] is not None and not stage.limits.keep_near_duplicates:
            keys.append(("near_duplicate", sample["near_duplicate_group"]))
        for key in keys:
            best = first_of.setdefault(key, sample)
            if best is not sample and sample.id not in drops:
                same = "the same sample as" if key[0] == "duplicate" else "a near duplicate of"
                drops[sample.id] = Drop(key[0], f"{same} {best.id}, which is kept")
    return drops


def where_drop(answer: Answer) -> Drop:
    """Name the first part of the condition that a sample does not meet."""
    found = f": {answer.value:.4g}" if answer.value is not None else ""
    return Drop("where", f"{answer.failed} is not met{found}", answer.value, answer.threshold)


def choose(
    candidates: Sequence[Sample], forced: Collection[str], phase: PhaseSettings
) -> tuple[list[Sample], dict[str, Drop]]:
    """Apply balance and top to candidates in order; forced samples are always kept and take places from the others."""
    drops: dict[str, Drop] = {}
    kept = list(candidates)
    if phase.balance:
        balanced = _balanced(kept, forced, phase, None)
        drops = {sample.id: balance_drop(sample, phase) for sample in kept if sample.id not in balanced}
        kept = [sample for sample in kept if sample.id in balanced]
        capped = balanced if phase.top is None else _balanced(kept, forced, phase, phase.top)
    else:
        capped = first_places([sample.id for sample in kept], forced, phase.top)
    for place, sample in enumerate(kept, start=1):
        if sample.id not in capped:
            assert phase.top is not None
            drops[sample.id] = top_drop(place, phase.top)
    return [sample for sample in kept if sample.id in capped], drops


def first_places(names: Sequence[str], forced: Collection[str], top: int | None) -> set[str]:
    """Which of the names in order are among the first `top`; forced ones always are, and take places from the others."""
    free = [name for name in names if name not in forced]
    room = len(free) if top is None else max(0, top - (len(names) - len(free)))
    return {*forced, *free[:room]}


def top_drop(place: int, top: int) -> Drop:
    """The drop of a sample at a place, from 1, behind the last that is kept."""
    return Drop("top", f"place {place} in the order; {top} are kept", float(place), float(top))


def balance_drop(sample: Sample, phase: PhaseSettings) -> Drop:
    """The drop of a sample that balance leaves over: its framing has its share, has none, or is unknown."""
    framing = sample["framing"]
    if framing is None:
        return Drop("balance", "its framing is unknown, so that it counts for no wished share")
    if not (phase.balance or {}).get(framing):
        return Drop("balance", f"no share is wished for framing {framing}")
    return Drop("balance", f"enough samples of framing {framing} for the wished shares")


def _balanced(samples: Sequence[Sample], forced: Collection[str], phase: PhaseSettings, most: int | None) -> set[str]:
    """Names of the largest balanced set of at most so many, forced samples first in their class and in any case.

    Forced samples over the share of their class, or of none, take their places from all others.
    """
    assert phase.balance
    by_class: dict[str, list[str]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: sample.id not in forced):
        by_class[sample["framing"]].append(sample.id)
    available = {name: len(names) for name, names in by_class.items() if name is not None}
    shares = {str(name): share for name, share in phase.balance.items()}
    room = len(samples) if most is None else most
    while room > 0:
        counts = balanced_counts(available, shares, phase.balance_tolerance, room)
        names = {name for key, count in counts.items() for name in by_class[key][:count]} | {*forced}
        if most is None or len(names) <= most:
            return names
        room = min(room, sum(counts.values())) - 1
    return {*forced}


def selected(decided: Mapping[str, PhaseDecision]) -> Counter[str]:
    """How many phases keep each sample, of those that any keeps."""
    return Counter(name for phase in decided.values() for name in phase.kept)


def hold_out(
    samples: Sequence[Sample], wished: Mapping[str, PhaseDecision], stage: DecisionStage, kept_out: Sequence[Sample]
) -> list[str]:
    """Choose the held-out samples, at most half of what is selected, those `kept_out` first; names in the order of choice.

    Preferred are samples that many phases would train on (the cleanest), then close or half framings with a face, then
    light set-ups that are not yet held out; ties break by a hash of the image. Samples named by `always` stay, and so do
    their near duplicates, which held out would drop them.
    """
    named = {*stage.always}.union(*(phase.always for phase in stage.phases.values()))
    groups_by_hand = {one["near_duplicate_group"] for one in samples if one.id in named and not untrainable(one)} - {
        None
    }
    by_hand = named | {one.id for one in samples if one["near_duplicate_group"] in groups_by_hand}
    counts = selected(wished)
    pool = [sample for sample in samples if counts[sample.id] and sample.id not in by_hand]
    groups: set[str | None] = set()
    lights: Counter[Any] = Counter()
    chosen: list[str] = []

    def preference(sample: Sample) -> tuple[int, bool, int, str, str]:
        seen_face = sample.has_face and sample["framing"] in ("close", "half")
        drawn = sha256_of_bytes(f"holdout {sample.image_sha256}".encode())
        return (-counts[sample.id], not seen_face, lights[sample["light_cluster"]], drawn, sample.sample_id or "")

    waiting = [sample for sample in kept_out if sample.id not in by_hand]
    while (waiting or pool) and len(chosen) < min(stage.held_out, len(counts) // 2):
        best = waiting.pop(0) if waiting else min(pool, key=preference)
        chosen.append(best.id)
        lights[best["light_cluster"]] += 1
        groups.add(best["near_duplicate_group"])
        pool = [s for s in pool if s.id not in chosen and s["near_duplicate_group"] not in groups - {None}]
    return chosen


def held_out_drops(samples: Sequence[Sample], held: Sequence[str]) -> dict[str, Drop]:
    """The drops that keep held-out samples, and near duplicates of them, out of every phase."""
    drops = {name: Drop("held_out", "held out to measure against") for name in held}
    groups = {s["near_duplicate_group"]: s.id for s in samples if s.id in drops and s["near_duplicate_group"]}
    for sample in samples:
        likeness = groups.get(sample["near_duplicate_group"])
        if likeness is not None and sample.id not in drops:
            drops[sample.id] = Drop("held_out", f"a near duplicate of {likeness}, which is held out")
    return drops


def holdout_rows(
    by_name: Mapping[str, Sample], held: Sequence[str], wished: Mapping[str, PhaseDecision]
) -> list[dict[str, Any]]:
    """Rows of the holdout: the held-out samples in order of choice; with none, all selected ones as references."""
    if held:
        return [{**by_name[name].manifest_row(), "use": "held_out"} for name in held]
    rows = [{**by_name[name].manifest_row(), "use": "reference"} for name in selected(wished)]
    return sorted(rows, key=lambda row: row["sample_id"])


def decision_rows(
    samples: Sequence[Sample], decided: Mapping[str, PhaseDecision], refined: Collection[str] = ()
) -> list[dict[str, Any]]:
    """One row a phase and sample; what `refined` phases keep is kept so far."""
    rows = []
    for phase, decision in decided.items():
        position = {name: index for index, name in enumerate(decision.kept)}
        for sample in samples:
            row: dict[str, Any] = {"phase": phase, "id": sample.id, "sample_id": sample.sample_id}
            if sample.id not in position:
                drop = decision.drops[sample.id]
                row |= {"kept": False, "rule": drop.rule, "value": drop.value, "threshold": drop.threshold}
                row |= {"reason": drop.reason}
            elif sample.id in decision.by_hand:
                against = decision.by_hand[sample.id]
                row |= {"kept": True, "rule": "always", "value": against.value, "threshold": against.threshold}
                row |= {"reason": f"kept by hand (always) against {against.rule}: {against.reason}"}
            elif phase in refined and sample.id not in decision.forced:
                row |= {"kept": True, "rule": CANDIDATE, "reason": "kept so far; the losses of a training decide"}
            else:
                row |= {"kept": True, "rule": "kept", "reason": ""}
            rows.append(row | {"position": position.get(sample.id)})
    return rows
