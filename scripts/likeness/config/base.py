"""The common parent of all settings, and the small types that several sections share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]*$"
RESERVED_NAMES = frozenset(
    {"report", "base", "holdout", "surgery", "files", "decisions", "report-half", "curate", "all", "models"}
)


class Settings(BaseModel):
    """Frozen settings; an unknown key is an error, never silently kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=False, allow_inf_nan=False
    )


class ModelSource(Settings):
    """Where a model's weights come from; a bare string in YAML is its `source`."""

    source: str = Field(description="Local file or folder, or a hub id such as `facebook/sam2.1-hiera-tiny`.")
    revision: str | None = Field(
        default=None, description="Hub revision; pins the bytes and serves as the fingerprint."
    )
    sha256: str | None = Field(
        default=None,
        description="Expected sha256 of the weight file, which in a folder is its `model.safetensors`; a folder without one "
        "has a digest of all its files, which the error tells. Checked before the first use.",
    )


def source_from_text(value: Any) -> Any:
    """Let a bare string stand for `{source: <string>}`."""
    return {"source": value} if isinstance(value, str) else value


ModelChoice = Annotated[ModelSource, BeforeValidator(source_from_text, json_schema_input_type=ModelSource | str)]


def one_or_many(value: Any) -> Any:
    """Let a single value stand for a list of one."""
    return value if isinstance(value, list | tuple) or value is None else [value]


@dataclass(frozen=True)
class KeysOf:
    """Marks a mapping of some keys of another settings model, checked where it is laid over the rest of them."""

    model: type[BaseModel]

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Show editors the model's own keys."""
        return handler(self.model.__pydantic_core_schema__)
