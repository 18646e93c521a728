"""Settings of the captions stage."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, model_validator

from likeness.config.base import ModelChoice, Settings


class CaptionSettings(Settings):
    """Who writes captions and what is allowed in them."""

    backend: str = Field(
        default="transformers",
        description="transformers (a local VLM), endpoint (OpenAI-compatible), facts (measured facts), or a registered name.",
    )
    model: ModelChoice = Field(
        default={"source": "Qwen/Qwen3-VL-4B-Instruct"},
        description="The VLM: folder or hub id; at an endpoint the model's name there.",
    )  # type: ignore[arg-type]
    url: str | None = Field(
        default=None,
        description="Address of the endpoint: a host (http://localhost:8000) or up to the version (https://openrouter.ai/api/v1).",
    )
    api_key_env: str | None = Field(
        default=None,
        description="Name of the environment variable that holds the endpoint's key; the key itself appears nowhere.",
    )
    concurrency: int = Field(default=4, ge=1, le=128, description="Requests in flight at the endpoint.")
    timeout_s: float = Field(default=120.0, gt=0, description="Time allowed for one request, in seconds.")
    attempts: int = Field(
        default=4, ge=1, le=10, description="Tries of one request before the job fails and heals on the next run."
    )
    asks: int = Field(
        default=2,
        ge=1,
        le=5,
        description="How often an unusable answer is asked again before the caption needs review.",
    )
    max_side_px: int = Field(
        default=768, ge=64, le=4096, description="Longer side of the photo that the VLM sees, in px."
    )
    max_new_tokens: int = Field(default=256, ge=16, le=4096, description="Longest answer, in tokens.")
    max_words: int = Field(default=80, ge=3, le=400, description="Longest caption, in words.")
    min_words: int = Field(default=3, ge=1, le=100, description="Shortest caption, in words.")
    instruction: str | None = Field(
        default=None,
        description="Edit: one instruction for all pairs that bring none, imperative, without the trigger.",
    )
    forbid: tuple[str, ...] = Field(default=(), description="More words that no caption of this subject may hold.")
    allow: tuple[str, ...] = Field(
        default=(), description="Words or phrases that the recipe's lint would forbid but this subject allows."
    )
    price_in_usd: float | None = Field(
        default=None, ge=0, description="Price of a million prompt tokens, in US dollars, for the cost column."
    )
    price_out_usd: float | None = Field(
        default=None, ge=0, description="Price of a million answer tokens, in US dollars, for the cost column."
    )

    @model_validator(mode="after")
    def check_whole(self) -> CaptionSettings:
        """Check what keys must agree on; an address may carry no secret, since settings stand in tables."""
        wrong = []
        if self.backend == "endpoint" and not self.url:
            wrong.append("url: missing; the endpoint backend needs the server's address, such as http://localhost:8000")
        if self.url is not None:
            address = urlsplit(self.url)
            if address.scheme not in ("http", "https") or not address.hostname:
                wrong.append("url: not an address; it begins with http:// or https:// and a host")
            if address.username or address.password or address.query or address.fragment:
                wrong.append("url: holds a name, password or query; give a key through api_key_env instead")
        if self.min_words > self.max_words:
            wrong.append(f"min_words: {self.min_words} is above max_words, {self.max_words}")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class CaptionStage(Settings):
    """The slice that write_captions reads: `sidecars` are caption files by name, `edits` hand edits of captions.csv by name."""

    captions: CaptionSettings
    recipe: str
    trigger: str
    class_word: str
    sidecars: dict[str, str] = Field(default_factory=dict)
    edits: dict[str, str] = Field(default_factory=dict)
    offline: bool = True
    cpu_threads: int = 1
