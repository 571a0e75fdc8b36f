"""Answers to pictures, or to recordings: captions, questions about what is seen or heard.

    L = - mean over the answers' tokens of  log p(token | medium, prompt, those before)

The medium stands in the prompt where the model's processor puts it: by its chat template, or else
its token before the prompt (LLaVA, Liu et al. 2023, arXiv:2304.08485). Only answers count.

    trimtab tune --task image-text-to-text --model vlm --data shown.jsonl --out runs/shown

of lines {"image": "a.png", "prompt": "What is it?", "answer": "a seven"}; without prompts, answers
are captions. `audio-text-to-text` is the same of recordings (Chu et al. 2024, arXiv:2407.10759).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column, media
from trimtab.tasks import models
from trimtab.tasks.audio_classification import AUDIO
from trimtab.tasks.image_classification import IMAGE
from trimtab.tasks.pictures import hold_statistics, named
from trimtab.tasks.task import Batch, Encoded, Outputs, Task, refuse_unless_counts, shortest_first
from trimtab.tasks.tokens import IGNORED, likelihoods

if TYPE_CHECKING:
    from datasets import Dataset

_PROMPT = Column("prompt", ("question", "instruction", "query"), required=False)
_ANSWER = Column("answer", ("text", "caption", "transcript", "response", "label"), answer=True)
_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, kw_only=True)
class ImageTextToText(Task):
    """`prompt` is asked where a row has none; with `generate` answers are generated,
    `max_new_tokens` at most, and compared whole."""

    prompt: str = "Describe it."
    generate: bool = False
    max_new_tokens: int = 32

    name: ClassVar[str] = "image-text-to-text"
    varied: ClassVar[tuple[str, ...]] = ("image", "audio")
    auto: ClassVar[str] = "AutoModelForImageTextToText"
    columns: ClassVar[tuple[Column, ...]] = (IMAGE, _PROMPT, _ANSWER)
    by_loss: ClassVar[bool] = True
    by_token: ClassVar[bool] = True
    eval_batch: ClassVar[int] = 8

    def __post_init__(self) -> None:
        refuse_unless_counts(self, "max_new_tokens")

    @property
    def medium(self) -> str:
        return self.columns[0].name

    @property
    def given(self) -> tuple[str, ...]:
        return self.medium, "prompt"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("exact_match",) if self.generate else ("perplexity",)

    def processor(self, model: str) -> Any:
        processor = models.load_processor("AutoProcessor", model)
        if not hasattr(processor, "tokenizer") or not hasattr(processor, _READERS[self.medium]):
            raise InputError(
                f"model {model!r} has no processor of texts with {self.medium}s: its data are "
                f"prepared by {type(processor).__name__}"
            )
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return processor

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        model, fresh = models.load_model(self.auto, name, config, dtype, dropout=dropout)
        hold_statistics(model)
        if model.generation_config is not None and model.generation_config.pad_token_id is None:
            model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
        return model, fresh

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    # Examples

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """The medium stays as the data has it until its batch is made."""
        asked = list(rows["prompt"]) if "prompt" in rows.column_names else [""] * len(rows)
        examples: list[dict[str, Any]] = [
            {"cell": cell, "prompt": prompt or self.prompt, "length": len(prompt or self.prompt)}
            for cell, prompt in zip(rows[self.medium], asked, strict=True)
        ]
        if labels is not None:
            read = processor.tokenizer
            end = [] if read.eos_token_id is None else [read.eos_token_id]
            found = read(list(rows["answer"]), add_special_tokens=False, verbose=False)
            for example, ids in zip(examples, found["input_ids"], strict=True):
                example["answer"] = [*ids, *end]
                example["length"] += len(example["answer"])
        return shortest_first(examples)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Any]:
        """Of each example the prompt's tokens and its medium; with answers, these after them and
        `labels`; without, and as `prompts`, padded on the left to be gone on from."""
        made = [self._asked(example, processor) for example in examples]
        pad = processor.tokenizer.pad_token_id
        if "answer" not in examples[0]:
            return _joined(made, [[]] * len(made), pad, left=True)
        answers = [list(example["answer"]) for example in examples]
        batch = _joined(made, answers, pad)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, (one, answer) in enumerate(zip(made, answers, strict=True)):
            start = one["input_ids"].shape[1]
            labels[row, start : start + len(answer)] = torch.tensor(answer)
        batch["labels"] = labels
        if self.generate:
            batch["prompts"] = _joined(made, [[]] * len(made), pad, left=True)
        return batch

    def _asked(self, example: Mapping[str, Any], processor: Any) -> dict[str, Tensor]:
        """What the processor makes of a medium and its prompt, (1, …) each."""
        text = _with_medium(processor, self.medium, example["prompt"])
        if self.medium == "image":
            given = {"images": [media.image(example["cell"])]}
        else:
            rate = int(processor.feature_extractor.sampling_rate)
            given = {"audio": [media.audio(example["cell"], rate)], "sampling_rate": rate}
        made = dict(processor(text=[text], **given, return_tensors="pt"))
        end = processor.tokenizer.eos_token_id
        if made["input_ids"].shape[1] > 1 and made["input_ids"][0, -1] == end:
            made = {k: x[:, :-1] if k in _OF_TOKENS else x for k, x in made.items()}
        return made

    # Training and answers

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**{k: x for k, x in _fitting(model, batch).items() if k != "prompts"})
        return outputs.loss, outputs

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        """The tokens that follow each prompt; or where there are labels to compare with, the
        negative log-likelihood and the number of tokens that count (n, 2)."""
        if self.generate or "labels" not in batch:
            prompts = _fitting(model, batch.get("prompts", batch))
            found = model.generate(**prompts, max_new_tokens=self.max_new_tokens, do_sample=False)
            return list(found[:, prompts["input_ids"].shape[1] :].cpu().numpy())
        inputs = {k: x for k, x in _fitting(model, batch).items() if k != "labels"}
        return likelihoods(model(**inputs).logits, batch["labels"])

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        if not self.generate:
            return [tuple(map(float, row)) for row in outputs]
        return _texts(outputs, processor)

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        return [one.strip() for one in rows["answer"]] if self.generate else [None] * len(rows)

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        return [
            {self.medium: named(rows[self.medium][i], i), "generated": text}
            for i, text in enumerate(_texts(outputs, processor))
        ]

    def shown(self, rows: Dataset, index: int) -> str:
        return named(rows[self.medium][index], index)


_READERS = {"image": "image_processor", "audio": "feature_extractor"}


def _with_medium(processor: Any, medium: str, prompt: str) -> str:
    if getattr(processor, "chat_template", None):
        content = [{"type": medium}, {"type": "text", "text": prompt}]
        told = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return str(told)
    return f"{getattr(processor, f'{medium}_token', '')}{prompt}"


def _joined(
    made: Sequence[Mapping[str, Tensor]],
    answers: Sequence[list[int]],
    pad: int,
    *,
    left: bool = False,
) -> dict[str, Any]:
    """A batch of what the processor made of each, with the answers' tokens after the prompts'."""
    batch: dict[str, Any] = {}
    longest = max(m["input_ids"].shape[1] + len(a) for m, a in zip(made, answers, strict=True))
    for key in made[0]:
        if key not in _OF_TOKENS:
            batch[key] = torch.cat([one[key] for one in made])
            continue
        out = torch.full((len(made), longest), pad if key == "input_ids" else 0)
        for row, (one, answer) in enumerate(zip(made, answers, strict=True)):
            filler = torch.tensor(answer, dtype=torch.long)
            if key != "input_ids":  # an answer is text, and all of it is read
                filler = torch.full_like(filler, int(key == "attention_mask"))
            whole = torch.cat([one[key][0], filler])
            out[row, longest - len(whole) if left else 0 :][: len(whole)] = whole
        batch[key] = out
    return batch


def _fitting(model: Any, batch: Batch) -> dict[str, Any]:
    """Numbers of what is seen or heard, in the model's dtype."""
    dtype = next(model.parameters()).dtype
    return {
        key: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for key, x in batch.items()
    }


def _texts(outputs: Outputs, processor: Any) -> list[str]:
    decode = processor.tokenizer.decode
    return [str(decode(np.asarray(ids), skip_special_tokens=True)).strip() for ids in outputs]


@dataclass(frozen=True, kw_only=True)
class AudioTextToText(ImageTextToText):
    """The same of recordings."""

    name: ClassVar[str] = "audio-text-to-text"
    auto: ClassVar[str] = "AutoModelForMultimodalLM"
    placed: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = (AUDIO, _PROMPT, _ANSWER)
