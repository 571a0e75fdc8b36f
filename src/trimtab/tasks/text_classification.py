"""Text classification: one label for a text. Metric: accuracy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.heads import heads
from trimtab.data import Column
from trimtab.tasks.models import (
    hub_options,
    loading_error,
    position_limit,
    resolve,
    without_dropout,
)

if TYPE_CHECKING:
    from datasets import Dataset

Example = dict[str, Any]


def _numbers_first(label: str) -> tuple[int, int, str]:
    number = re.fullmatch(r"-?[0-9]{1,18}", label)
    return (0, int(label), label) if number else (1, 0, label)


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples, shortest first, and where each stood in the data."""

    examples: list[Example]
    order: np.ndarray
    truncated: int

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Values computed in this order, in the data's order."""
        out = np.empty_like(values)
        out[self.order] = values
        return out


@dataclass(frozen=True)
class TextClassification:
    """What the task asks of data and model; everything else is the same for every task."""

    name: ClassVar[str] = "text-classification"
    metric: ClassVar[str] = "accuracy"
    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "text",
            (
                *("text", "sentence", "content", "review", "utterance"),
                *("query", "question", "document", "body", "title"),
            ),
        ),
        Column(
            "label",
            ("label", "labels", "category", "class", "intent", "target", "sentiment", "topic"),
            kind="label",
        ),
    )

    def labels(self, rows: Dataset) -> list[str]:
        """The label names, in the order of the model's outputs."""
        names = set(rows["label"])
        return sorted(names, key=_numbers_first)

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        """The labels in the order of the checkpoint's own head, where it has just these names."""
        own = list(self._config(name).id2label.values())
        return own if sorted(own) == sorted(labels) else list(labels)

    def _config(self, name: str) -> Any:
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(resolve(name), **hub_options(resolve(name)))
        except (OSError, ValueError, KeyError) as error:
            raise loading_error(name, error) from None

    def tokenizer(self, model: str) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(resolve(model), **hub_options(resolve(model)))
        except (OSError, ValueError, KeyError) as error:
            raise loading_error(model, error) from None
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise InputError(
                    f"the tokenizer of {model!r} has no padding token, nor an end token to stand "
                    "in for it: set tokenizer.pad_token and save it with the model"
                )
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def model(
        self, name: str, labels: Sequence[str], tokenizer: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        """The model with a head for these labels, and the parameters that are new: those that no
        checkpoint filled, and a head that was made for other labels.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification

        path = resolve(name)
        try:
            config = AutoConfig.from_pretrained(
                path,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                **hub_options(path),
            )
            if not dropout:
                without_dropout(config)
            config.pad_token_id = tokenizer.pad_token_id
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **hub_options(path),
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise loading_error(name, error) from None
        model.config._name_or_path = name  # the user's name for it, not where it lies here
        mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
        fresh = {*info["missing_keys"], *mismatched}
        if list(self._config(name).id2label.values()) != list(labels):
            inside = tuple(f"{head}." for head in heads(model))
            fresh |= {key for key, _ in model.named_parameters() if key.startswith(inside)}
        return model, sorted(fresh)

    def width(self, name: str) -> int:
        """The model's hidden width."""
        config = self._config(name)
        return int(getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or 768)

    def lengths(self, rows: Dataset, tokenizer: Any) -> list[int]:
        """Tokens of every text, special tokens included."""
        whole = tokenizer(list(rows["text"]), truncation=False, verbose=False)["input_ids"]
        return [len(ids) for ids in whole]

    def limit(self, model: Any, tokenizer: Any) -> int:
        return position_limit(model.config, tokenizer)

    def encode(
        self, rows: Dataset, tokenizer: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Tokenise; with `labels`, examples carry the index of theirs."""
        every = list(rows["text"])
        whole = tokenizer(every, truncation=False, verbose=False)
        lengths = np.array([len(ids) for ids in whole["input_ids"]])
        order = np.argsort(lengths, kind="stable")
        texts = [every[i] for i in np.flatnonzero(lengths > max_length)]
        cut = iter(
            tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else ()
        )
        ids = [
            next(cut) if n > max_length else whole["input_ids"][i] for i, n in enumerate(lengths)
        ]
        examples: list[Example] = [{"input_ids": ids[i], "length": len(ids[i])} for i in order]
        if labels is not None:
            index = {label: i for i, label in enumerate(labels)}
            given = list(rows["label"])
            for example, i in zip(examples, order, strict=True):
                example["labels"] = index[given[i]]
        return Encoded(examples, order, len(texts))

    def collate(self, examples: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Tensor]:
        """(batch, longest) token ids and mask, and (batch,) labels where there are any."""
        longest = max(example["length"] for example in examples)
        ids = torch.full((len(examples), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            ids[row, : example["length"]] = torch.as_tensor(example["input_ids"])
            mask[row, : example["length"]] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, in fp32 whatever the model's dtype."""
        return F.cross_entropy(logits.float(), labels)

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """One value per example whose mean is the metric: right or wrong."""
        return (logits.argmax(-1) == labels).astype(np.float64)
