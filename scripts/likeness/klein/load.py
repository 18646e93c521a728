"""A FLUX.2 [klein] checkpoint in diffusers layout, from a folder or the local hub cache, loaded part by part.

Training needs the transformer alone, encoding the VAE and the text encoder alone, so every part is loaded at its first
use and can be released. The text encoder is cut to the layers that are read and loses its head, which saves a fifth of
its memory and changes no bit of the embeddings. Mistakes that can be seen in the config files are found before any
weight is read, and torch is imported with the first part, so that a job whose results are stored starts fast.
"""

from __future__ import annotations

import gc
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from likeness.errors import UserError
from likeness.klein.family import MAX_TEXT_TOKENS, TEXT_LAYERS, Layout, layout_of, token_px
from likeness.klein.fingerprint import folder_fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Qwen3Model

    from likeness.klein.libraries import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

Part = Literal["transformer", "vae", "text_encoder", "tokenizer", "scheduler"]
TEXT_ENCODER_LAYERS = TEXT_LAYERS[-1] + 1
"""One more than the deepest state that is read: the library replaces the last layer's state by the normed one."""

_UNREAD_LAYERS = r"layers\.(2[89]|[3-9]\d|\d{3,})\."
DTYPES = ("float32", "bfloat16", "float16")
_HUB_FILES = ["model_index.json"] + [
    f"{part}/*" for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
]


class BaseModel:
    """A base model whose parts are loaded at first use: transformer, vae, text_encoder, tokenizer, scheduler.

    `source` is a folder or a hub id ('owner/name', with `revision`: a branch, tag or commit). With `offline` only the
    local hub cache is read. `sha256`, where given, must equal the folder's fingerprint, else UserError. `dtype` is
    float32, bfloat16 or float16; `fingerprint_cache` remembers the digests of weight files.
    """

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        offline: bool = True,
        device: str = "cpu",
        dtype: str = "float32",
        sha256: str | None = None,
        fingerprint_cache: Path | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"base_model: dtype {dtype!r} is not known. Allowed: {', '.join(DTYPES)}")
        self.source = source
        self.revision = revision
        self.offline = offline
        self.device_name = device
        self.dtype_name = dtype
        self.expected_sha256 = sha256
        self.fingerprint_cache = fingerprint_cache

    @property
    def device(self) -> torch.device:
        """Where parts are put when they are loaded."""
        import torch

        return torch.device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which parts are loaded."""
        import torch

        return getattr(torch, self.dtype_name)

    @cached_property
    def folder(self) -> Path:
        """The local folder, found in the hub cache (or downloaded, when not offline) for a hub id."""
        local = Path(self.source).expanduser()
        folder = local if local.is_dir() else self._hub_folder()
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"base_model: {self.source} has no model_index.json. A checkpoint in diffusers layout is needed: "
                "a folder "
                "with model_index.json, transformer/, vae/, text_encoder/, tokenizer/ and scheduler/."
            )
        return folder

    def config_of(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """Read a part's config file; UserError names the file where it is absent or broken."""
        path = self.folder / part / name
        try:
            return json.loads(path.read_text("utf-8"))
        except OSError:
            raise UserError(
                f"base_model: {path} is missing. Put the whole {part}/ folder of {self.source} there."
            ) from None
        except ValueError:
            raise UserError(f"base_model: {path} is not valid JSON. Download {self.source} again.") from None

    @cached_property
    def layout(self) -> Layout:
        """The transformer's layout; UserError where the text encoder belongs to another size of the family."""
        layout = layout_of(self.config_of("transformer"))
        text = self.config_of("text_encoder")
        hidden = int(text.get("hidden_size", 0))
        if len(TEXT_LAYERS) * hidden != layout.joint_attention_dim:
            raise UserError(
                f"base_model: the text encoder of {self.source} has hidden size {hidden}, so its embeddings have "
                f"{len(TEXT_LAYERS) * hidden} values, but the transformer ({layout.name}) reads "
                f"{layout.joint_attention_dim}. "
                "The 4B transformer needs Qwen3-4B (2560), the 9B needs Qwen3-8B (4096): replace the "
                "text_encoder/ folder."
            )
        if int(text.get("num_hidden_layers", 0)) < TEXT_ENCODER_LAYERS:
            raise UserError(
                f"base_model: the text encoder of {self.source} has {text.get('num_hidden_layers')} layers, "
                f"but states up to layer {TEXT_LAYERS[-1]} are read: at least {TEXT_ENCODER_LAYERS} are needed."
            )
        return layout

    @cached_property
    def fingerprint(self) -> str:
        """What identifies the weights: the hub's commit ('owner/name@commit'), else 64 hex digits over the files."""
        commit = self._hub_commit()
        if commit and not self.expected_sha256:
            return f"{self.source}@{commit}"
        digest = folder_fingerprint(self.folder, self.fingerprint_cache)
        if self.expected_sha256 and digest != self.expected_sha256:
            raise UserError(
                f"base_model: the files of {self.source} have the sha256 {digest}, but {self.expected_sha256} is "
                "expected. "
                "Download them again, or correct base_model.sha256."
            )
        return digest

    @cached_property
    def is_distilled(self) -> bool:
        """Whether the checkpoint was distilled to a few steps without guidance (from model_index.json)."""
        return bool(self.config_of(".", "model_index.json").get("is_distilled", False))

    @cached_property
    def token_px(self) -> int:
        """Pixels along one side of a token (16 for klein)."""
        return token_px(self.config_of("vae"))

    @property
    def max_text_tokens(self) -> int:
        """Tokens of every embedding: 512, or fewer where the tokenizer says so."""
        return min(MAX_TEXT_TOKENS, int(self.tokenizer.model_max_length))

    @cached_property
    def transformer(self) -> Flux2Transformer2DModel:
        """The frozen transformer in evaluation mode."""
        from likeness.klein.libraries import Flux2Transformer2DModel

        assert self.layout
        return self._frozen(Flux2Transformer2DModel, "transformer", torch_dtype=self.dtype)

    @cached_property
    def vae(self) -> AutoencoderKLFlux2:
        """The frozen VAE in evaluation mode."""
        from likeness.klein.libraries import AutoencoderKLFlux2

        return self._frozen(AutoencoderKLFlux2, "vae", torch_dtype=self.dtype)

    @cached_property
    def text_encoder(self) -> Qwen3Model:
        """The frozen text encoder, cut to `TEXT_ENCODER_LAYERS` layers and without its head."""
        from transformers import Qwen3Config, Qwen3Model

        assert self.layout
        config = Qwen3Config.from_pretrained(self.folder / "text_encoder")
        config.num_hidden_layers = TEXT_ENCODER_LAYERS
        config.layer_types = list(config.layer_types or [])[:TEXT_ENCODER_LAYERS] or None

        class CutQwen3Model(Qwen3Model):
            """Qwen3 without the layers and the head that are left in the file on purpose."""

            _keys_to_ignore_on_load_unexpected: ClassVar = [_UNREAD_LAYERS, r"^lm_head\."]

        return self._frozen(CutQwen3Model, "text_encoder", config=config, dtype=self.dtype)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with its chat template."""
        from transformers import AutoTokenizer

        self.config_of("tokenizer", "tokenizer_config.json")
        return AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)

    @cached_property
    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """The checkpoint's own scheduler; the sampler works on copies of it."""
        from likeness.klein.libraries import FlowMatchEulerDiscreteScheduler

        self.config_of("scheduler", "scheduler_config.json")
        loaded = FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler", local_files_only=True)
        assert isinstance(loaded, FlowMatchEulerDiscreteScheduler)
        return loaded

    def release(self, part: Part) -> None:
        """Forget a loaded part, so that its memory can be reused; the next use loads it again."""
        import torch

        self.__dict__.pop(part, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _frozen(self, model_class: Any, part: str, **options: Any) -> Any:
        self.config_of(part)
        folder = self.folder / part
        if not any(folder.glob("*.safetensors")):
            raise UserError(
                f"base_model: {folder} holds no .safetensors file. Put the weights of {self.source} ({part}/) there."
            )
        model, info = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise UserError(
                f"base_model: the weights in {folder} lack {len(missing)} tensors, the first is {missing[0]!r}: "
                f"they are incomplete or belong to another model. Download {part}/ of {self.source} again."
            )
        return model.requires_grad_(False).eval().to(self.device)

    def _hub_folder(self) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        revision = f" --revision {self.revision}" if self.revision else ""
        fetch = f"`hf download {self.source}{revision}`"
        where = repr(self.source) + (f" at revision {self.revision}" if self.revision else "")
        try:
            found = snapshot_download(
                self.source, revision=self.revision, local_files_only=self.offline, allow_patterns=_HUB_FILES
            )
        except (HFValidationError, LocalEntryNotFoundError):
            reason = "offline: true downloads nothing" if self.offline else "the hub could not be reached"
            raise UserError(
                f"base_model: {where} is neither a folder nor in the local hub cache, and {reason}. Give an "
                "existing folder "
                f"in diffusers layout, or fetch it once with `make models` or {fetch}."
            ) from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "no answer"
            raise UserError(
                f"base_model: the hub refuses {where} ({status}). Check the name and revision; for a gated model "
                "accept its "
                f"licence on its page, log in with `hf auth login`, and try {fetch}."
            ) from None
        return Path(found)

    def _hub_commit(self) -> str | None:
        return None if Path(self.source).expanduser().is_dir() else self.folder.name


def check_trainable(base: BaseModel, allow_distilled: bool) -> None:
    """Raise UserError for a distilled checkpoint, on which training collapses, unless it is allowed."""
    if base.is_distilled and not allow_distilled:
        raise UserError(
            f"base_model: {base.source} is distilled (is_distilled in model_index.json): LoRAs trained on it "
            "collapse early. "
            "Train on the base checkpoint (FLUX.2-klein-base-4B or -9B) and use the LoRA on either, or set "
            "allow_distilled: true."
        )
