"""The model card: what the LoRA is, how to use it, what it may be used for, and the evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likeness.config.evaluation import PublishStage
from likeness.trigger import trigger_pattern
from likeness.yaml_text import yaml_text

INSIGHTFACE_RECOGNISERS = ("glintr100", "w600k_r50", "w600k_mbf")
TAGS = ("lora", "flux2", "klein", "likeness")
SHOWN_SETTINGS = ("rank", "alpha", "targets", "steps", "learning_rate", "batch_size", "gradient_accumulation", "seed")


@dataclass(frozen=True)
class Verdict:
    """Whether the LoRA may be used commercially, and why; `licence` is the base model's."""

    licence: str
    commercial: str
    reason: str


def licence_verdict(base_source: str, recogniser: str) -> Verdict:
    """Judge by the base model's licence and by the recogniser that measured and chose."""
    name = base_source.lower()
    if "klein" in name and "9b" in name:
        return Verdict(
            "FLUX Non-Commercial License",
            "no",
            "the 9B base model is licensed for non-commercial use, and a LoRA is a derivative of it",
        )
    if "klein" in name and "4b" in name:
        if any(known in recogniser for known in INSIGHTFACE_RECOGNISERS):
            reason = (
                "the 4B base model is Apache-2.0, but the checkpoint was chosen with an insightface pack, which is licensed for "
                "non-commercial research only. Choose with another recogniser to be free of it"
            )
            return Verdict("Apache-2.0", "only without the insightface pack", reason)
        return Verdict(
            "Apache-2.0", "yes", "the 4B base model is Apache-2.0 and no insightface pack took part in the choice"
        )
    return Verdict(
        "licence unknown to Likeness",
        "unknown",
        f"read the licence of {base_source} first",
    )


def write_card(
    subject: str,
    stage: PublishStage,
    best: Mapping[str, Any],
    decisions: Sequence[Mapping[str, Any]],
    samples: Sequence[tuple[str, str]],
    modules: int,
    no_comfyui: str = "",
) -> str:
    """The card as Markdown; `samples` are (file, prompt) of images drawn with this LoRA, `modules` the adapted modules.

    `no_comfyui` says why no ComfyUI file lies beside it, if none does.
    """
    verdict = licence_verdict(stage.base_model.source, str(best["calibration"].get("recogniser") or ""))
    strength = best["lora_scale"]
    front = {"base_model": stage.base_model.source, "library_name": "diffusers", "instance_prompt": stage.trigger}
    lines = [
        "---",
        yaml_text({**front, "tags": list(TAGS)}).rstrip(),
        "---",
        "",
        f"# {subject}",
        "",
        f"{'An' if stage.recipe[0] in 'aeiou' else 'A'} {stage.recipe} LoRA for {stage.base_model.source}, {modules} adapted modules.",
        "",
        "## Use",
        "",
        f"- Trigger: `{stage.trigger}` ({stage.class_word}). Recommended strength: **{strength:g}**.",
        *_source_lines(stage),
        f'- diffusers: `pipeline.load_lora_weights("{subject}.safetensors")`',
        f"- ComfyUI: {f'no file, since {no_comfyui}' if no_comfyui else f'`{subject}.comfyui.safetensors` in `models/loras`'}",
        "",
        "## Licence and consent",
        "",
        f"- Base model: {verdict.licence}. Commercial use: **{verdict.commercial}**; {verdict.reason}.",
        "- Train and publish only with the agreement of the people shown, and label generated pictures as such.",
        "",
        "## Why this checkpoint",
        "",
        f"Variant {best['variant']}, phase {best['phase'] or '-'}, step {best['step']}: {best['rule']}.",
        "",
        *_score_lines(best),
        *_setting_lines(stage),
        *_data_lines(decisions),
        *_sample_lines(samples, stage.trigger),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _source_lines(stage: PublishStage) -> list[str]:
    """How the picture to change is given, of an edit."""
    if stage.recipe != "edit":
        return []
    return [
        "- It changes a picture, so it needs one: `pipeline(image=picture, prompt=…)`, further references behind it as "
        "`image=[picture, reference]`, in the order of the training pairs; in ComfyUI as reference latents.",
    ]


def _score_lines(best: Mapping[str, Any]) -> list[str]:
    calibration = best["calibration"]
    lines = ["## Scores", ""]
    if not best["metrics"]:
        lines += ["This checkpoint was not drawn on the report half, so there are no independent numbers.", ""]
    else:
        lines += [
            "From prompts and seeds that took no part in the choice; 95 % intervals over clusters of prompts.",
            "",
        ]
        lines += ["| metric | value | interval | clusters |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {found['value']:.3f} | {_interval(found)} | {found['n']} |"
            for name, found in sorted(best["metrics"].items())
        ]
        lines.append("")
    if calibration.get("genuine") is not None:
        lines += [
            f"Genuine level {calibration['genuine']:.3f} ({calibration['n_genuine']} photos), impostor level "
            f"{_shown(calibration.get('impostor'))} ({calibration['n_impostor']} images), recogniser {calibration['recogniser']}.",
            "",
        ]
    return lines


def _interval(found: Mapping[str, Any]) -> str:
    return "-" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _setting_lines(stage: PublishStage) -> list[str]:
    shown = [f"{name} {stage.training[name]}" for name in SHOWN_SETTINGS if stage.training.get(name) is not None]
    return ["## Training settings", "", ", ".join(shown) + ".", ""] if shown else []


def _data_lines(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["## Data", "", "| phase | fate | count |", "|---|---|---|"]
    counts = Counter((row["phase"], "kept" if row["kept"] else f"dropped: {row['rule']}") for row in decisions)
    lines += [f"| {phase} | {fate} | {count} |" for (phase, fate), count in sorted(counts.items())]
    return [*lines, ""] if counts else []


def _sample_lines(samples: Sequence[tuple[str, str]], trigger: str) -> list[str]:
    """The pictures with their prompts; what was drawn without the trigger shows what the LoRA leaves alone, and says so."""
    lines = []
    for file, prompt in samples:
        shown = prompt.replace("[", "(").replace("]", ")")
        mark = "" if trigger_pattern(trigger).search(prompt) else " *(without the trigger)*"
        lines.append(f"![{shown}]({file})\n{prompt}{mark}\n")
    return ["## Samples", "", *lines] if lines else []
