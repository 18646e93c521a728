"""The slice that the pages read: every subject's resolved settings."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from likeness.config.base import Settings


class PageStage(Settings):
    """Resolved settings by subject; `orders` names each one's phases as written, since canonical JSON sorts them."""

    subjects: dict[str, dict[str, Any]]
    orders: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def restore_order(cls, values: Any) -> Any:
        """Put the phases back into their order; theirs is the order of training."""
        orders = values.get("orders") or {name: list(subject["phases"]) for name, subject in values["subjects"].items()}
        subjects = {
            name: {**subject, "phases": {phase: subject["phases"][phase] for phase in orders[name]}}
            for name, subject in values["subjects"].items()
        }
        return {"subjects": subjects, "orders": orders}
