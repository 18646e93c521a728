"""Read a model's answer: find the fields in whatever it said.

Servers that accept `response_format` may ignore it, so nothing is believed: thoughts and code fences are cut away, every
JSON object in the text is tried, also with trailing commas, Python quotes or a torn end, and then lines `key: value`.
Curly quotes belong to a value, unless only reading them as straight ones finds more fields.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from likeness.captions.lexicon import REFUSALS

ALIASES = {
    "clothes": "clothing",
    "outfit": "clothing",
    "attire": "clothing",
    "light": "lighting",
    "setting": "scene",
    "location": "scene",
    "place": "scene",
    "activity": "action",
    "prop": "props",
    "composition": "framing",
    "instruction": "change",
    "edit": "change",
}
"""Names that models use instead of those asked for."""
EMPTY = frozenset(
    {
        "",
        "-",
        "n/a",
        "na",
        "nil",
        "no",
        "none",
        "none visible",
        "none seen",
        "not applicable",
        "not specified",
        "not visible",
    }
    | {
        "nothing",
        "null",
        "unclear",
        "undefined",
        "unknown",
        "unspecified",
        "no props",
        "no objects",
        "empty",
        "empty string",
    }
)
THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
THOUGHTS_END = re.compile(r"\A.*</(think|thinking|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
TOKENS = re.compile(r"<\|[^|>]{1,40}\|>")
FENCE = re.compile(r"```[a-zA-Z]*")
TRAILING_COMMA = re.compile(r",(\s*[}\]])")
TORN_PAIR = re.compile(r'"([A-Za-z_ -]{1,30})"\s*:\s*"((?:[^"\\]|\\.)*)"')
LINE_PAIR = re.compile(r"^[\s\-*#>\"']*([A-Za-z_ ]{1,30}?)[\s*\"'_]*[:=][\s*]*(.+?)[\s*,]*$", re.MULTILINE)
SMART_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "‚": "'"})
QUOTE_MARKS = {sign: (re.compile(rf"(?<!\w){sign}(?=\S)"), re.compile(rf"(?<=\S){sign}(?!\w)")) for sign in ('"', "'")}
"""Where a sign opens and where it closes a quote; between letters it is an apostrophe."""


@dataclass(frozen=True)
class Parsed:
    """The fields that were found, one line each, and the problem when there is none that can be used.

    `whole`: they come from a complete object, and not from the loose reading of a torn one.
    """

    fields: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    whole: bool = False


def parse_answer(text: str, names: Sequence[str]) -> Parsed:
    """Find the fields `names` in an answer; never raises, whatever the text."""
    plain = FENCE.sub("", TOKENS.sub("", without_thoughts(text))).strip()
    best: dict[str, str] = {}
    whole = False
    for found, is_object in (*candidates(plain.translate(SMART_QUOTES)), *candidates(plain)):
        fields = known_fields(found, names)
        if fields and len(fields) >= len(best):
            best, whole = fields, is_object
    best = {name: value for name, value in best.items() if not refuses(value)}
    if best:
        return Parsed(best, whole=whole)
    if not plain:
        return Parsed(problem="empty answer")
    if refuses(plain):
        return Parsed(problem=f"refusal: {shortened(plain)}")
    return Parsed(problem=f"no JSON object with the keys {', '.join(names)}")


def without_thoughts(text: str) -> str:
    """Cut reasoning away, also where only its end was sent or its end never came."""
    return THOUGHTS_END.sub("", THOUGHTS.sub("", text))


def refuses(text: str) -> bool:
    """Whether a text declines to answer."""
    return REFUSALS.search(text.translate(SMART_QUOTES)) is not None


def shortened(text: str, length: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def candidates(text: str) -> Iterator[tuple[dict[Any, Any], bool]]:
    """Mappings that the text may hold, and whether each is a complete object.

    They come from the loosest reading to the strictest, so that the strictest wins a tie.
    """
    yield {key: without_edge_quotes(value) for key, value in LINE_PAIR.findall(text)}, False
    yield {key: unescaped(value) for key, value in TORN_PAIR.findall(text)}, False
    for piece in objects_in(text):
        value = read_object(piece)
        if isinstance(value, dict):
            yield value, True


def without_edge_quotes(text: str) -> str:
    """Cut quotes that stand around the whole text, and one at an edge that has no partner; others belong to the text."""
    for sign, (opening, closing) in QUOTE_MARKS.items():
        straight = text.translate(SMART_QUOTES)
        opened, closed = (len(pattern.findall(straight)) for pattern in (opening, closing))
        starts, ends = straight.startswith(sign), straight.endswith(sign)
        around = starts and ends and opened == closed == 1
        start = int(starts and (around or not closed))
        text = text[start : max(start, len(text) - int(ends and (around or not opened)))]
    return text


def unescaped(value: str) -> str:
    try:
        return str(json.loads(f'"{value}"', strict=False))
    except ValueError:
        return value


def objects_in(text: str) -> Iterator[str]:
    """Every balanced {…} of the text that lies in no other; braces inside strings are taken as they come."""
    depth, start = 0, 0
    for place, sign in enumerate(text):
        if sign == "{":
            start = place if depth == 0 else start
            depth += 1
        elif sign == "}" and depth:
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]


def read_object(piece: str) -> Any:
    """Read one {…} as JSON, with trailing commas, or as a Python literal; None when it is none of these."""
    for variant in (piece, TRAILING_COMMA.sub(r"\1", piece)):
        try:
            return json.loads(variant, strict=False)
        except (ValueError, RecursionError):
            continue
    try:
        return ast.literal_eval(piece)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def known_fields(found: dict[Any, Any], names: Sequence[str]) -> dict[str, str]:
    """Keep the fields that were asked for, under their own names, as non-empty lines."""
    fields: dict[str, str] = {}
    for key, value in found.items():
        name = "_".join(str(key).strip().strip("\"'").lower().replace("-", " ").split())
        name = name if name in names else ALIASES.get(name, name)
        line = as_line(value)
        if name in names and name not in fields and line.lower().strip(" .") not in EMPTY:
            fields[name] = line
    return fields


def as_line(value: Any, depth: int = 0) -> str:
    """One line from a value of any type; booleans, nulls and deep nestings say nothing."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, bool) or value is None or depth > 2:
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        lines = [as_line(one, depth + 1) for one in value]
        return ", ".join(line for line in lines if line and line.lower() not in EMPTY)
    return ""
