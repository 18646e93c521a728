"""The trigger in a text: where it stands as a word of its own."""

from __future__ import annotations

import re


def trigger_pattern(trigger: str, follower: str = "") -> re.Pattern[str]:
    """Finds the trigger as a word of its own, in capitals or not; together with the word `follower` where that comes next.

    The trigger may begin and end with any sign, as `[v]` does, beside which there is no word's edge.
    """
    next_word = rf"(?:\s+{re.escape(follower)}(?!\w))?" if follower else ""
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w){next_word}", re.IGNORECASE)
