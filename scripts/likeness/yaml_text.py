"""Values as YAML text that reads back as the same values."""

from __future__ import annotations

import math
from typing import Any

import yaml

LINE_BREAKS = "\x85\u2028\u2029"
"""Line breaks of YAML 1.1 that PyYAML folds to a space when it reads them back from between single quotes."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper, with double quotes and their escapes where single ones would lose a line break."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = '"' if any(mark in value for mark in LINE_BREAKS) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(values: dict[str, Any], width: float = math.inf) -> str:
    """Plain values as block YAML, keys in the order given, letters of every script as they are.

    `width` is the column in characters after which long texts are folded.
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
