"""Ask a backend about many photos, in rounds: what is unusable is asked again with the list of what was wrong.

Only answers cost, so only answers are stored, each under (backend, model, pictures' bytes, prompt). Parsing, assembling,
lint and repair run anew on every start and are free: another trigger, framing threshold or word list asks nothing again
unless a caption that was good becomes bad.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from likeness.captions.answer import parse_answer
from likeness.captions.assemble import assemble
from likeness.captions.captioner import Answer, Captioner, Question, Unanswered, captioner_class
from likeness.captions.facts import Facts
from likeness.captions.lint import lint
from likeness.captions.prompts import RECIPES, first_prompt, next_prompt
from likeness.captions.repair import repair
from likeness.config.captions import CaptionStage
from likeness.photos.images import ImageRef
from likeness.store import Store, canonical_json, item_key

VERSION = 2
STAGE = "captions"


@dataclass(frozen=True)
class Draft:
    """What became of one answer: `caption` is empty unless it passed the lint; `complaints` say why it did not."""

    caption: str = ""
    raw: str | None = None
    fields: Mapping[str, str] | None = None
    violations: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()


@dataclass
class Talk:
    """All that was asked and answered about one photo or pair."""

    id: str
    images: tuple[ImageRef, ...]
    facts: Facts
    prompt: str = ""
    answers: list[Answer] = field(default_factory=list)
    draft: Draft = field(default_factory=Draft)
    stopped: str = ""
    """Why asking again is in vain; empty while it is not."""

    @property
    def question(self) -> Question:
        return Question(self.images, self.prompt, self.facts)

    def tokens(self, name: str) -> int | None:
        """Tokens of all answers together; None where no answer counted them."""
        counts = [count for answer in self.answers if (count := getattr(answer, name)) is not None]
        return sum(counts) if counts else None


def judge(answer: Answer, stage: CaptionStage, framing: str | None) -> Draft:
    """Make a caption of an answer: parse, assemble, lint, repair; `framing` is the measured class or None.

    An answer that was cut off counts only where its object was complete before.
    """
    parsed = parse_answer(answer.text, list(RECIPES[stage.recipe].fields))
    if answer.truncated and not parsed.whole:
        return Draft(complaints=(f"cut off at captions.max_new_tokens = {stage.captions.max_new_tokens}; raise it",))
    if parsed.problem:
        return Draft(complaints=(parsed.problem,))
    raw = assemble(stage, parsed.fields, framing)
    violations = tuple(str(finding) for finding in lint(raw, stage, framing))
    caption, repairs, left = repair(raw, stage, framing)
    complaints = tuple(dict.fromkeys([*violations, *(str(finding) for finding in left)])) if left else ()
    return Draft("" if left else caption, raw, parsed.fields, violations, tuple(repairs), complaints)


class Interviewer:
    """Asks one backend; loads it at the first answer that is not stored. `models_loaded` and `asked` count for the summary."""

    def __init__(self, stage: CaptionStage, store: Store) -> None:
        self.stage, self.store = stage, store
        self.models_loaded = self.asked = 0
        self._class = captioner_class(stage.captions.backend)
        self._captioner: Captioner | None = None
        self.fingerprint = self._class.fingerprint(stage, store.root)

    @property
    def is_model(self) -> bool:
        return self._class.is_model

    def interview(self, talks: Sequence[Talk]) -> None:
        """Ask about every photo until its caption is good, or the asks are spent; fills the talks in place.

        Raises TransientError or UserError as the backend does, after all answers that were given are stored.
        """
        open_talks = list(talks)
        for ask in range(1 + (self.stage.captions.asks if self.is_model else 0)):
            for talk in open_talks:
                talk.prompt = self._prompt(talk, ask)
            by_content: dict[str, list[Talk]] = {}
            for talk in open_talks:
                by_content.setdefault(canonical_json([talk.question.content, self._facts(talk)]), []).append(talk)
            for question, answer in self._answers([same[0].question for same in by_content.values()]):
                for talk in by_content[canonical_json([question.content, self._facts(question)])]:
                    self._hear(talk, answer)
            open_talks = [talk for talk in open_talks if not talk.draft.caption and not talk.stopped]

    def _prompt(self, talk: Talk, ask: int) -> str:
        recipe, class_word = self.stage.recipe, self.stage.class_word
        return next_prompt(recipe, class_word, talk.draft.complaints) if ask else first_prompt(recipe, class_word)

    def _facts(self, about: Talk | Question) -> list[str | None]:
        """What was measured, where the answer depends on it: a model does not hear of it."""
        facts = about.facts
        return [] if self.is_model else [facts.framing, facts.pose, facts.light, facts.background]

    def _hear(self, talk: Talk, answer: Answer | Unanswered) -> None:
        if isinstance(answer, Unanswered):
            talk.stopped = answer.reason
            return
        talk.answers.append(answer)
        talk.stopped = answer.refusal
        talk.draft = (
            Draft(complaints=(f"refusal: {answer.refusal}",))
            if answer.refusal
            else judge(answer, self.stage, talk.facts.framing)
        )
        # A model that said nothing that may stand has not described the photo; measurements may be as short as they are.
        if self.is_model and talk.draft.caption == assemble(self.stage, {}, talk.facts.framing):
            complaints = (*talk.draft.violations, "stub: nothing is left that says what the photo shows")
            talk.draft = replace(talk.draft, caption="", complaints=complaints)

    def _key(self, question: Question) -> str:
        captions = self.stage.captions
        settings = {name: getattr(captions, name) for name in ("backend", "max_side_px", "max_new_tokens")}
        return item_key(STAGE, VERSION, settings, self.fingerprint, question.content)

    def _answers(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Answer | Unanswered]]:
        """Answers from the store, then those of the backend, each stored the moment it comes."""
        missing = []
        for question in questions:
            item = self.store.load(STAGE, self._key(question)) if self.is_model else None
            if item is None:
                missing.append(question)
            else:
                self.store.reused[STAGE] += 1
                yield question, Answer(**item.record)
        if not missing:
            return
        if self._captioner is None:
            self._captioner = self._class(self.stage, self.store.root)
            self.models_loaded += self.is_model
        for question, answer in self._captioner.answers(missing):
            if self.is_model and isinstance(answer, Answer):
                self.store.save(STAGE, self._key(question), as_record(answer))
                self.store.computed[STAGE] += 1
                self.asked += 1
            yield question, answer


def as_record(answer: Answer) -> dict[str, Any]:
    """An answer as a JSON record; lone surrogates, which no file can hold, are replaced."""
    text = answer.text.encode("utf-8", "replace").decode()
    return dict(vars(replace(answer, text=text)))
