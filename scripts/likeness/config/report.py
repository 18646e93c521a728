"""The slice that the pages read: every subject's resolved settings."""

from __future__ import annotations

from typing import Any

from likeness.config.base import Settings


class PageStage(Settings):
    """Resolved settings by subject, as they stand in results/<subject>/config.yaml."""

    subjects: dict[str, dict[str, Any]]
