"""What every benchmark does with its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def show(figures: Mapping[str, Any], file: Path | None) -> None:
    """Print figures as JSON, and write them to a file where one is named."""
    text = json.dumps(figures, indent=1)
    if file:
        file.write_text(text + "\n", encoding="utf-8")
    print(text)
