"""What the stages of curation warned of, each in its log that nobody reads: said on the page that everybody does."""

from __future__ import annotations

from collections.abc import Iterator

from likeness.report.flags import Flag
from likeness.report.gather import Subject
from likeness.report.numbers import Number, count


def cautions(subject: Subject) -> Iterator[Flag]:
    """Too few held out, phases that keep nothing, and captions by hand that break a rule."""
    word = subject.sample_word
    yield from _too_few_held_out(subject)
    for phase, kept in subject.funnel.phases:
        if not kept:
            yield Flag("empty phase", (f"phase {phase} keeps no {word}; every {word} below says why",))
    doubtful = [photo for photo in subject.photos if photo.doubts and photo.fate != "dropped"]
    if doubtful:
        found = count(subject.name, "captions", "doubts", len(doubtful))
        first = doubtful[0]
        yield Flag(
            "captions by hand",
            ("they are read as they are, but ", found, f" broke a rule; {first.name}: {'; '.join(first.doubts)}"),
        )


def _too_few_held_out(subject: Subject) -> Iterator[Flag]:
    asked, held = subject.settings["held_out"], subject.samples_held_out
    if held is None or held >= asked:
        return
    wish = Number(asked, (("source", "settings"), ("subject", subject.name), ("key", "held_out")), 0)
    yield Flag(
        "few held out",
        (
            "held_out asks for ",
            wish,
            "; only ",
            count(subject.name, "holdout", "held_out", held),
            " can be: at least half of what the phases keep is trained on, and all that always names. "
            f"Add {subject.sample_word}s or ask for fewer",
        ),
    )
