"""YAML text reads back as the values that it was made of."""

from __future__ import annotations

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from likeness.yaml_text import yaml_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4), st.sampled_from([40, 100, float("inf")]))
@example({"key\u2029": ["'\x85'", "a \u2028 b", "é: #"]}, float("inf"))
def test_values_are_read_back(values: dict, width: float) -> None:
    assert yaml.safe_load(yaml_text(values, width)) == values


def test_letters_of_every_script_stay_readable() -> None:
    assert yaml_text({"trigger": "žaneta 晴", "photos": "Mes photos"}) == "trigger: žaneta 晴\nphotos: Mes photos\n"
