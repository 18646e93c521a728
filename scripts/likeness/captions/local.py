"""Caption backend: a local vision-language model through transformers; greedy, so that equal pictures get equal words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from likeness.captions.captioner import Answer, Question, Unanswered
from likeness.captions.pictures import load_picture
from likeness.config.captions import CaptionStage
from likeness.errors import UserError
from likeness.faces.weights import check_sha256, hub_folder, model_fingerprint
from likeness.lease import device_of_job
from likeness.photos.load import PhotoError

KEY = "captions.model"
NEEDED = ("config.json",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PROCESSOR = ("processor_config.json", "preprocessor_config.json")


def model_folder(stage: CaptionStage) -> Path:
    """Find the model's folder; raises UserError naming folder, id and files where something is absent."""
    folder = hub_folder(KEY, stage.captions.model, NEEDED, stage.offline)
    for choices in (WEIGHTS, PROCESSOR):
        if not any((folder / name).is_file() for name in choices):
            raise UserError(
                f"{KEY}: the model folder {folder} lacks {' or '.join(choices)}. Put the file there, or set {KEY} to a folder that has it."
            )
    return folder


class TransformersCaptioner:
    """A vision-language model in this process, on the GPU where there is one; one question after another."""

    is_model: ClassVar[bool] = True

    def __init__(self, stage: CaptionStage, store_root: Path) -> None:
        folder = model_folder(stage)
        check_sha256(KEY, stage.captions.model, folder, store_root)
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        torch.set_num_threads(stage.cpu_threads)
        self._settings = stage.captions
        self._device = device_of_job()
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype="auto")
        except Exception as error:  # safetensors, json and transformers raise many kinds for torn or foreign files
            raise UserError(
                f"{KEY}: the files in the folder {folder} are not a vision-language model with its processor "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Fetch them again."
            ) from error
        self._model = model.eval().to(self._device)

    @classmethod
    def fingerprint(cls, stage: CaptionStage, store_root: Path) -> str:
        """The configured sha256 or revision, else the digest of the folder's files."""
        model = stage.captions.model
        if model.sha256 or model.revision:
            return model_fingerprint(model, None, store_root)
        return model_fingerprint(model, model_folder(stage), store_root)

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Answer | Unanswered]]:
        """Answer in the order of the questions."""
        for question in questions:
            try:
                yield question, self._answer(question)
            except PhotoError as error:
                yield question, Unanswered(str(error))

    def _answer(self, question: Question) -> Answer:
        import torch

        pictures = [load_picture(image, self._settings.max_side_px) for image in question.images]
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        content.append({"type": "text", "text": question.prompt})
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            # Sampling settings that the model ships are unset, or greedy search would warn about them.
            produced = self._model.generate(
                **inputs,
                max_new_tokens=self._settings.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        asked = int(inputs["input_ids"].shape[1])
        new = produced[0, asked:]
        text = self._processor.batch_decode(new[None], skip_special_tokens=True)[0]
        ends = self._model.generation_config.eos_token_id
        ended = int(new[-1]) in (ends if isinstance(ends, list) else [ends])
        truncated = not ended and len(new) >= self._settings.max_new_tokens
        return Answer(text, asked, len(new), truncated=truncated)
