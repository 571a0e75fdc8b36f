"""Sequence to sequence: translation, summarisation, spelling to phonemes, data to text.

L = - mean over the target's tokens of  log p(token | source, those before)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.characters import Characters, spells
from trimtab.tasks.task import Batch, Encoded, Outputs, Task, refuse_unless_counts, shortest_first
from trimtab.tasks.tokens import IGNORED, pad, padded, tokenise

if TYPE_CHECKING:
    from datasets import Dataset

Measure = Literal[
    "chrf", "bleu", "rouge", "exact_match", "phoneme_error_rate", "character_error_rate"
]
_MEASURES: dict[str, tuple[str, ...]] = {
    "bleu": ("bleu", "chrf"),
    "chrf": ("chrf", "bleu"),
    "rouge": ("rougeL", "rouge1", "rouge2"),
    "exact_match": ("exact_match",),
    "phoneme_error_rate": ("phoneme_error_rate", "exact_match"),
    "character_error_rate": ("character_error_rate", "exact_match"),
}
_SOURCE = ("source", "input", "text", "document", "article", "question", "word", "meaning")
_TARGET = ("target", "output", "summary", "translation", "answer", "phonemes", "reference")


@dataclass(frozen=True, kw_only=True)
class Text2TextGeneration(Task):
    """`prefix` is put before every source, as T5 was trained; `measure` says what is compared;
    answers have `max_new_tokens` at most and are the best of `beams`."""

    prefix: str = ""
    measure: Measure = "chrf"
    max_new_tokens: int = 64
    beams: int = 1

    name: ClassVar[str] = "text2text-generation"
    varied: ClassVar[tuple[str, ...]] = ("source",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("source", _SOURCE),
        Column("target", _TARGET, answer=True),
    )
    by_loss: ClassVar[bool] = True
    by_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_unless_counts(self, "max_new_tokens", "beams")
        if self.measure not in _MEASURES:
            raise InputError(
                f"text2text-generation: measure is one of {', '.join(_MEASURES)}, not "
                f"{self.measure!r}"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        return _MEASURES[self.measure]

    def processor(self, model: str) -> Any:
        config = models.configuration(model)
        return Characters(config) if spells(config) else models.load_tokenizer(model)

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        if not config.is_encoder_decoder:
            raise InputError(
                f"model {name!r} is no encoder-decoder: text2text-generation takes one (BART, T5); "
                "a causal model learns the same with --task text-generation, form=answer"
            )
        return models.load_model("AutoModelForSeq2SeqLM", name, config, dtype, dropout=dropout)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, processor)

    def _sources(self, rows: Dataset) -> list[str]:
        return [self.prefix + source for source in rows["source"]]

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        """Of the longer of source and target, both of which are held to the same length."""
        sources = tokenise(processor, self._sources(rows), None, 10**9)[0]
        targets = processor(text_target=list(rows["target"]), verbose=False)["input_ids"]
        return [max(s["length"], len(t)) for s, t in zip(sources, targets, strict=True)]

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples, cut = tokenise(processor, self._sources(rows), None, max_length)
        if labels is not None:
            targets = processor(text_target=list(rows["target"]), verbose=False)["input_ids"]
            end = processor.eos_token_id
            for example, ids in zip(examples, targets, strict=True):
                example["labels"] = _closed(ids, max_length, end)
            cut += sum(len(ids) > max_length for ids in targets)
        return shortest_first(examples, cut)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(batch, longest) token ids and mask of the sources, and labels (batch, longest)."""
        batch = padded(examples, processor)
        batch.pop("token_type_ids", None)
        if "labels" in examples[0]:
            batch["labels"] = pad(examples, "labels", IGNORED)
        return batch

    def ask(self, model: Any, batch: Batch, processor: Any) -> list[np.ndarray]:
        given = {key: x for key, x in batch.items() if key != "labels"}
        found = model.generate(
            **given, max_new_tokens=self.max_new_tokens, num_beams=self.beams, do_sample=False
        )
        return list(found.cpu().numpy())

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[str]:
        return [str(processor.decode(ids, skip_special_tokens=True)).strip() for ids in outputs]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[str]:
        return [target.strip() for target in rows["target"]]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        answers = self.answers(outputs, rows, labels, processor)
        return [
            {"source": source, "generated": answer}
            for source, answer in zip(rows["source"], answers, strict=True)
        ]


def _closed(ids: list[int], limit: int, end: int | None) -> list[int]:
    """Cut to the limit; what is cut still ends."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], *([] if end is None else [end])]
