"""Tables of surgery on LoRAs, and of what is measured of LoRAs and of the base's blocks."""

from __future__ import annotations

from likeness.tables import FLOAT, TEXT, WHOLE, Table, columns

SURGERY = Table(
    "surgery",
    columns(
        ("module", TEXT, "module of the result, by diffusers' name"),
        ("rank_before", WHOLE, "its rank in the parents together; 0 where the first has none"),
        ("rank_after", WHOLE, "its rank in the result"),
        (
            "retained_energy",
            FLOAT,
            "part of the squared norm that the lower rank keeps, 0..1; null where nothing is cut",
        ),
        ("energy_ratio", FLOAT, "TIES, DARE, magnitude: squared norm of the merged change over that of the plain sum"),
        ("norm_before", FLOAT, "subtract: Frobenius norm of the first parent's change"),
        ("norm_after", FLOAT, "subtract: Frobenius norm of the result's change"),
        ("block", TEXT, "weigh-blocks: the module's block"),
        ("weight", FLOAT, "weigh-blocks: the weight of that block"),
    ),
    ("module",),
)

ABLATION = Table(
    "ablation",
    columns(
        ("subject", TEXT, "name of the subject"),
        ("ablation", TEXT, "name of the entry in the configuration"),
        ("parent", TEXT, "the LoRA that was taken apart, in words"),
        ("lora_sha256", TEXT, "hash of its file"),
        ("base_model", TEXT, "fingerprint of the base model"),
        ("mode", TEXT, "knock-out: the other blocks at 1; knock-in: the other blocks at 0"),
        ("block", TEXT, "double.0 …, single.0 …, counted from 0; other: modules outside of the blocks"),
        ("weight", FLOAT, "weight of the block under test"),
        ("metric", TEXT, "name of the metric; image_change: mean absolute difference to the reference's image, 0..1"),
        ("modules", WHOLE, "modules of the LoRA in the block; at 0 the block cannot have an effect and is not drawn"),
        ("norm_share", FLOAT, "the block's share in the squared norm of all changes of weight, 0..1"),
        ("value", FLOAT, "mean over clusters"),
        ("reference", FLOAT, "the same of what it is compared with: the whole LoRA (knock-out) or the base (knock-in)"),
        ("difference", FLOAT, "mean paired difference, value minus reference, over clusters of prompts"),
        ("low", FLOAT, "lower end of its 95 % interval, corrected by Holm over blocks; null with one cluster"),
        ("high", FLOAT, "upper end of that interval"),
        ("n", WHOLE, "number of clusters"),
        ("p", FLOAT, "two-sided p of Student's paired t test, uncorrected; null with one cluster or without modules"),
        ("p_holm", FLOAT, "the same corrected by Holm over the blocks of one mode, weight and metric"),
        (
            "effect",
            FLOAT,
            "how much the metric gets worse by a knock-out, or better by a knock-in; below 0 the LoRA is better without the block",
        ),
        ("rank", WHOLE, "1 for the block with the largest effect in this mode and at this weight"),
    ),
    ("mode", "metric", "weight", "rank", "block"),
)

CROSSTALK = Table(
    "crosstalk",
    columns(
        ("subject", TEXT, "the subject whose prompts were drawn and whose metrics were measured"),
        ("crosstalk", TEXT, "name of the entry in the configuration"),
        ("own", TEXT, "the subject's LoRA, in words"),
        ("own_sha256", TEXT, "hash of its file"),
        ("other", TEXT, "the LoRA beside it, in words"),
        ("other_sha256", TEXT, "hash of its file"),
        ("base_model", TEXT, "fingerprint of the base model"),
        ("method", TEXT, "sum, k-lora or masked: how both were used at once"),
        ("metric", TEXT, "name of the metric"),
        ("alone", FLOAT, "mean over clusters of prompts with the subject's own LoRA alone"),
        ("together", FLOAT, "the same with both LoRAs"),
        ("difference", FLOAT, "mean paired difference, together minus alone, over clusters of prompts"),
        ("low", FLOAT, "lower end of its 95 % interval; null with one cluster"),
        ("high", FLOAT, "upper end of that interval"),
        ("n", WHOLE, "number of clusters"),
    ),
    ("subject", "metric"),
)

OVERLAPS = Table(
    "overlaps",
    columns(
        ("module", TEXT, "module that both LoRAs adapt, by diffusers' name"),
        ("inputs", FLOAT, "mean squared cosine of the principal angles between the inputs that both read, 0..1"),
        ("inputs_by_chance", FLOAT, "the same for random subspaces of these sizes"),
        ("outputs", FLOAT, "mean squared cosine of the principal angles between the outputs that both write, 0..1"),
        ("outputs_by_chance", FLOAT, "the same for random subspaces of these sizes"),
        ("cosine", FLOAT, "cosine of the two changes of weight, -1..1"),
        ("energy", FLOAT, "the smaller of both squared Frobenius norms"),
    ),
    ("module",),
)

PROBE = Table(
    "probe",
    columns(
        ("subject", TEXT, "name of the subject whose base model was probed"),
        ("probe", TEXT, "name of the entry in the configuration"),
        ("base_model", TEXT, "fingerprint of the base model"),
        ("swap", TEXT, "content or style: what the other prompt changes"),
        ("place", WHOLE, "the block's place in the model, from 0"),
        ("block", TEXT, "double.0 …, single.0 …, counted from 0"),
        (
            "change",
            FLOAT,
            "how far the block alone takes the pixels to the other prompt's image; 0 not at all, 1 all the way",
        ),
        ("clip", FLOAT, "the same by closeness to the other prompt's text; null without a CLIP model"),
        ("role", TEXT, "content or style: which swap the block takes the larger part of"),
    ),
    ("swap", "place"),
)

SURGERY_TABLES: dict[str, Table] = {table.name: table for table in (SURGERY, ABLATION, CROSSTALK, OVERLAPS, PROBE)}
