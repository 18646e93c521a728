"""The rules by recipe, both ways: planted words are found, look-alikes are not."""

from __future__ import annotations

import pytest
from tests.captions.conftest import stage_of

from likeness.captions.lint import lint

LEAKS = {
    "face": "blue eyes|green-eyed|thick eyebrows|long lashes|a small nose|full lips|high cheekbones|rosy cheeks|a strong jawline"
    "|jaws|a pointed chin|oval face|heart-shaped face|round-faced|freckles|freckled|dimples|pale skin|fair-skinned|dark complexion"
    "|sharp facial features|white teeth|a broad forehead|a scar|tanned",
    "hair": "dark wavy hair|long-haired|blond|blonde|a brunette|redheaded|curly|bald|a beard|bearded|moustache|stubble"
    "|clean-shaven|sideburns",
    "age": "a young woman|an old man|an elderly person|middle-aged|a teenager|30 years old|a 25-year-old|in her twenties"
    "|in his late 40s|a youthful look",
    "origin": "an asian woman|caucasian|a black man|latina|hispanic|an indian girl|of african descent|mixed-race|middle-eastern",
    "looks": "beautiful|a pretty smile|handsome|attractive|gorgeous|good-looking|a striking look",
}
HARMLESS = (
    "wearing a face mask|eyes closed|eyes shut|closed eyes|eye contact|the lip of the cup|nose of the plane|facing the camera"
    "|face turned to the left|wearing glasses and eyewear|chin resting on hand|wind in the hair|hair tied back|a black coat"
    "|an old building|young trees|lipstick on the table|brushing teeth|a bald eagle|striking a pose|an asian restaurant"
    "|a white shirt|hairdryer in hand|smiling|a tan coat|a chair|eyes looking down|a 1920s car|running a race|aged brick wall"
)
HOW = {
    "mood": "moody|moodier sky|dramatic|serene|dreamy|an eerie forest|mysterious|atmospheric|stunning",
    "camera": "cinematic|bokeh|shallow depth of field|black and white|monochrome|wide-angle|a blurred street",
    "colour": "vibrant|vividly coloured|muted|warm tones|colourful|pastel colors|high contrast|a soft palette",
    "light": "soft lighting|golden hour|backlit|long shadows|sunlit|warm light|light from the left|dimly lit|glowing",
    "medium": "a watercolour|oil painting|painterly|painted|sketched|an anime girl|illustrated|3D render|brush strokes|film grain"
    "|a photograph",
    "manner": "in the style of someone|stylized|impressionist|surreal|van gogh|minimalist|an abstract shape|vintage",
}
PLAIN = (
    "a fox crossing a river|a woman painting a fence|a framed painting on the wall|traffic lights|a lighthouse|a horse-drawn carriage"
    "|two men at a market|a gothic cathedral|field of grain|a comic book on a table|street light"
)


@pytest.mark.parametrize(
    ("rule", "words"), [(rule, one) for rule, listed in LEAKS.items() for one in listed.split("|")]
)
def test_identity_leaks_are_found(rule: str, words: str) -> None:
    findings = lint(f"j4ne person, half body, {words}, in a park", stage_of(), "half")
    assert rule in {finding.rule for finding in findings}


@pytest.mark.parametrize("words", HARMLESS.split("|"))
def test_identity_look_alikes_pass(words: str) -> None:
    assert lint(f"j4ne person, half body, {words}, in a park", stage_of(), "half") == []


@pytest.mark.parametrize(("rule", "words"), [(rule, one) for rule, listed in HOW.items() for one in listed.split("|")])
def test_style_manner_is_found(rule: str, words: str) -> None:
    found = {finding.rule for finding in lint(f"j4ne, two people at a bus stop, {words}", stage_of("style"))}
    assert rule in found or (found and rule in ("colour", "medium"))  # pastel is both a medium and a colour


@pytest.mark.parametrize("words", PLAIN.split("|"))
def test_style_content_passes(words: str) -> None:
    assert lint(f"j4ne, {words}", stage_of("style", min_words=2)) == []


@pytest.mark.parametrize("caption", ["j4ne", "j4ne.", "j4ne, picture", "j4ne picture ,"])
def test_style_stubs_are_found(caption: str) -> None:
    stage = stage_of("style", class_word="picture", min_words=1)
    assert "stub" in {finding.rule for finding in lint(caption, stage)}


@pytest.mark.parametrize(
    ("caption", "rules"),
    [
        ("j4ne replace the red hat with a blue one", set()),
        ("j4ne: open the eyes", set()),
        ("j4ne make the person smile in front of a white background", set()),
        ("j4ne the hat is now blue", {"verb"}),
        ("j4ne smiling woman with a hat", {"verb"}),
        ("j4ne replace hat", {"change"}),
        ("j4ne change it so that the image shows a woman", {"preamble"}),
        ("j4ne make a photo of a woman in a park", {"preamble"}),
    ],
)
def test_edit_instructions(caption: str, rules: set[str]) -> None:
    assert {finding.rule for finding in lint(caption, stage_of("edit"))} == rules


@pytest.mark.parametrize(
    ("caption", "rules"),
    [
        ("j4ne person, half body, in a park", set()),
        ("person j4ne, half body, in a park", {"trigger"}),
        ("J4NE person, half body, in a park", {"trigger"}),
        ("j4nes person, half body, in a park", {"trigger"}),
        ("j4ne person, half body, j4ne in a park", {"trigger"}),
        ("j4ne person, half body, in a\npark", {"lines"}),
        ("j4ne person, half body, I'm sorry, in a park", {"refusal"}),
        ("j4ne person, half body, the image shows a park", {"preamble"}),
        ('j4ne person, half body, {"scene": a park', {"residue"}),
        ("j4ne person, half body, **a park**", {"residue"}),
        ("j4ne person, full body, in a park", {"framing"}),
        ("j4ne person, half body, headshot, in a park", {"framing"}),
        ("j4ne person, in a park", {"framing"}),
        ("j4ne person, half body, a full-length mirror", set()),
        ("j4ne person, half body, " + "word " * 90, {"length"}),
    ],
)
def test_rules_for_all(caption: str, rules: set[str]) -> None:
    assert {finding.rule for finding in lint(caption, stage_of(), "half")} == rules


def test_framing_is_not_judged_without_a_measurement() -> None:
    assert lint("j4ne person, full body, in a park", stage_of(), None) == []


def test_word_limits_hold_on_both_sides() -> None:
    stage = stage_of(min_words=4, max_words=5)
    rules = [{finding.rule for finding in lint(f"j4ne{' word' * count}", stage)} for count in (2, 3, 4, 5)]
    assert rules == [{"words"}, set(), set(), {"length"}]


def test_a_subjects_own_words() -> None:
    stage = stage_of(forbid=("Red Coat",), allow=("blue eyes", "bearded"))
    assert [str(one) for one in lint("j4ne person, half body, red coats", stage, "half")] == []
    assert [str(one) for one in lint("j4ne person, half body, a red-coat", stage, "half")] == ["forbidden: red-coat"]
    assert lint("j4ne person, half body, bearded with blue eyes", stage, "half") == []
    assert [one.rule for one in lint("j4ne person, half body, green eyes", stage, "half")] == ["face"]


def test_the_class_word_is_never_a_finding_but_what_describes_it_is() -> None:
    stage = stage_of(class_word="young woman")
    assert lint("j4ne young woman, half body, in a park", stage, "half") == []
    assert [one.rule for one in lint("j4ne young woman, half body, a young woman", stage, "half")] == ["age"]
