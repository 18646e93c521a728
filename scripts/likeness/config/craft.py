"""Rules of the craft: what cannot work is an error (impossible.py); what usually goes wrong is a warning with its source.

Each rule reads one subject's settings and names the key. Rules about the photos themselves are reported after curation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from likeness.config.impossible import impossible, model_name
from likeness.config.source import KeyPath
from likeness.config.subject import MINIATURE, Subject
from likeness.config.training import TrainingSettings
from likeness.klein.family import KLEIN_9B, known_layout
from likeness.trigger import trigger_pattern


@dataclass(frozen=True)
class CraftWarning:
    """One warning: whose, which key, what and why, and who says so."""

    subject: str
    key: str
    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.key}: {self.text} [{self.source}]"


ARTICLES = frozenset({"a", "an", "the", "this", "my"})
EVERYDAY = re.compile(
    "person|people|humans?|man|men|woman|women|girls?|boys?|child|children|kids?|baby|lady|guy|male|female|face|head|"
    "portrait|photo|picture|image|style|painting|drawing|art|cats?|dogs?"
)
"""Words for what subjects and styles are, of which no trigger may be made."""
Rule = Callable[[Subject], Iterator[tuple[str, str, str]]]


def check_craft(name: str, subject: Subject, errors: list[str], place: Callable[[KeyPath], str]) -> list[CraftWarning]:
    """Append what cannot work to `errors`, with its `place` in a file; return what deserves a second look."""
    errors.extend(
        f"{place(key)}: subject {name}: {'.'.join(map(str, key))}: {text}" for key, text in impossible(subject)
    )
    return [CraftWarning(name, *found) for rule in WARNINGS for found in rule(subject)]


def all_trainings(subject: Subject) -> list[TrainingSettings]:
    """The settings of every training that runs here."""
    return [subject.training_of(name, phase) for name in subject.native_variants for phase in subject.phases_of(name)]


def _small_rank(subject: Subject) -> Iterator[tuple[str, str, str]]:
    if subject.training.rank < 4:
        yield "training.rank", f"rank {subject.training.rank} is below 4; skin texture is lost", "community notes"
    for name, entry in subject.surgery.items():
        if entry.rank is not None and entry.rank < 4:
            yield f"surgery.{name}", f"rank {entry.rank} is below 4; skin texture is lost", "community notes"


def _alpha_above_rank(subject: Subject) -> Iterator[tuple[str, str, str]]:
    training = subject.training
    if training.resolved_alpha > 2 * training.rank:
        yield (
            "training.alpha",
            f"alpha {training.resolved_alpha:g} over rank {training.rank} multiplies the learning rate",
            "LoRA scaling alpha/rank",
        )


def _ignored_alpha(subject: Subject) -> Iterator[tuple[str, str, str]]:
    if "fal" in subject.export and subject.training.resolved_alpha != subject.training.rank:
        yield (
            "export.fal",
            "the fal trainer takes no alpha; it trains with alpha equal to rank",
            "fal trainer parameters",
        )


def _mirrored_faces(subject: Subject) -> Iterator[tuple[str, str, str]]:
    if subject.recipe != "style" and any(
        subject.training_of(variant, phase).flip > 0
        for variant in subject.native_variants
        for phase in subject.phases_of(variant)
    ):
        yield (
            "training.flip",
            "no face is symmetric: parting, moles and an uneven smile change sides, and a face is learned that nobody has",
            "asymmetry of faces",
        )


def _double_only(subject: Subject) -> Iterator[tuple[str, str, str]]:
    if subject.training.targets in {"to_q,to_k,to_v,to_out.0", "double_attn_img"}:
        yield (
            "training.targets",
            "reaches the double blocks only: a tenth of what all_blocks trains",
            "klein architecture: single blocks are fused",
        )


def _few_repeats(subject: Subject) -> Iterator[tuple[str, str, str]]:
    training = subject.training.resolve_steps(8)
    if (
        subject.recipe == "character"
        and training.fixed_steps * training.batch_size * training.gradient_accumulation < 50 * 8
    ):
        yield (
            "training.steps",
            "fewer than 50 repeats of even 8 photos; the identity will hardly be learned",
            "community notes",
        )


def _everyday_trigger(subject: Subject) -> Iterator[tuple[str, str, str]]:
    known = ARTICLES | set(re.findall(r"\w+", subject.class_word.lower()))
    words = re.findall(r"\w+", subject.trigger.lower())
    if subject.trigger.lower() == subject.class_word.lower():
        yield "trigger", "equals the class word, so the LoRA would replace everyone of that class", "prior preservation"
    elif words and all(word in known or EVERYDAY.fullmatch(word) for word in words):
        yield (
            "trigger",
            f"{subject.trigger!r} is a word that the model knows, so the LoRA would change everything that is called so. "
            "Take one that no language uses, such as j4ne",
            "prior preservation",
        )


def _adafactor(subject: Subject) -> Iterator[tuple[str, str, str]]:
    names = {training.optimizer.name for training in all_trainings(subject)}
    if subject.recipe == "character" and "adafactor" in names and known_layout(model_name(subject)) is KLEIN_9B:
        yield (
            "training.optimizer.name",
            "adafactor is said to average a character's face away on the 9B, within about 1000 steps, while it does for styles; "
            "adamw and adamw8bit are the safer choice",
            "community notes, not measured here",
        )


def _head_swap_padding(subject: Subject) -> Iterator[tuple[str, str, str]]:
    if subject.faces.crop.padding < 0.2:
        yield "faces.crop.padding", "a crop without hair and neck loses the hairline", "BFS notes"


def _same_recogniser(subject: Subject) -> Iterator[tuple[str, str, str]]:
    judge = (subject.evaluation.recogniser_backend, subject.evaluation.recogniser.source)
    if (
        subject.recipe != "style"
        and judge == (subject.faces.backend, subject.faces.model.source)
        and judge[1] not in {MINIATURE, "embedded"}
    ):
        yield (
            "evaluation.recogniser",
            "the same recogniser curates and scores; a different one is the fairer judge",
            "evaluation design",
        )


def _style_without_judge(subject: Subject) -> Iterator[tuple[str, str, str]]:
    if subject.recipe == "style" and subject.choice.metric is None and subject.evaluation.clip is None:
        yield (
            "evaluation.clip",
            "a style is chosen by style_similarity, which needs a CLIP model; without one no checkpoint is chosen and "
            "nothing is published. Set evaluation.clip, choice.metric, or pick by hand",
            "evaluation design",
        )


def _prompts_and_the_trigger(subject: Subject) -> Iterator[tuple[str, str, str]]:
    for name, prompt in subject.prompts.items() if subject.recipe != "edit" else []:
        text = prompt.text.replace("{trigger}", subject.trigger)
        is_called = trigger_pattern(subject.trigger).search(text) is not None
        if prompt.kind == "subject" and not is_called:
            yield (
                f"prompts.{name}",
                "has no {trigger}, so it is drawn without the subject and judged as if it showed it. Write {trigger}, or "
                "say kind: bleed (the class without the trigger) or neutral (nobody)",
                "evaluation design",
            )
        if prompt.kind != "subject" and is_called:
            yield (
                f"prompts.{name}",
                f"holds the trigger, which calls the LoRA, but kind {prompt.kind} shows what it does uncalled",
                "evaluation design",
            )


def _edit_without_words(subject: Subject) -> Iterator[tuple[str, str, str]]:
    if subject.recipe == "edit" and subject.captions.backend == "facts" and not subject.captions.instruction:
        yield (
            "captions.instruction",
            "facts cannot caption an edit, so pairs without a text of their own are dropped. Say once for all what is edited, "
            "or choose another captions.backend",
            "caption design",
        )


def _short_phase_chain(subject: Subject) -> Iterator[tuple[str, str, str]]:
    first = next(iter(subject.phases.values()))
    if (
        first.follows
        and len(subject.phases) > 1
        and any(phase.init == "scratch" for phase in list(subject.phases.values())[1:])
    ):
        yield (
            "phases",
            "a later phase starts from scratch, so the earlier ones are trained for nothing but comparison",
            "phases chain by weights",
        )


def _kind_of_adapter(subject: Subject) -> Iterator[tuple[str, str, str]]:
    kinds = {training.adapter.kind for training in all_trainings(subject)}
    if "dora" in kinds:
        yield (
            "training.adapter.kind",
            "a DoRA is slower to train, cannot be resized, merged or taken apart by block, and no ComfyUI file is made of it",
            "DoRA, arXiv:2402.09353; ComfyUI weight_decompose",
        )
    if "lokr" in kinds:
        yield (
            "training.adapter.kind",
            "a LoKr is published for ComfyUI as the LoRA that it equals, a larger file",
            "Kronecker product of factors",
        )


WARNINGS: tuple[Rule, ...] = (
    _small_rank,
    _alpha_above_rank,
    _ignored_alpha,
    _double_only,
    _mirrored_faces,
    _few_repeats,
    _everyday_trigger,
    _adafactor,
    _head_swap_padding,
    _same_recogniser,
    _style_without_judge,
    _edit_without_words,
    _prompts_and_the_trigger,
    _short_phase_chain,
    _kind_of_adapter,
)
