"""Text generation by a causal language model: continued training, instructions, chats, code.

    L = - mean over the tokens that count of  log p(token | those before)

Of plain texts all tokens count, and texts are laid end to end in blocks of full length, each closed
by the tokenizer's end token. Of a prompt with its answer, or of a chat, only the answers count.
Perplexity is exp of the mean over all tokens of the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.task import (
    Batch,
    Encoded,
    Example,
    Outputs,
    Task,
    refuse_unless_counts,
    shortest_first,
)
from trimtab.tasks.tokens import IGNORED, common, likelihoods, pad, padded

if TYPE_CHECKING:
    from datasets import Dataset

Form = Literal["text", "answer", "chat"]
_PROMPT = ("prompt", "instruction", "question", "input", "source")
_ANSWER = ("answer", "completion", "response", "output", "target", "solution")


@dataclass(frozen=True, kw_only=True)
class TextGeneration(Task):
    """`form`: plain texts, prompts with answers, or chats (messages). `template` makes a prompt of
    a row's `{prompt}`; `after` marks where what is compared begins in an answer, as `####` does in
    GSM8K; with `generate` answers are generated, `max_new_tokens` at most, and compared whole."""

    form: Form = "text"
    template: str = "{prompt}\n"
    generate: bool = False
    after: str = ""
    max_new_tokens: int = 128

    name: ClassVar[str] = "text-generation"
    by_loss: ClassVar[bool] = True
    by_token: ClassVar[bool] = True
    eval_batch: ClassVar[int] = 16

    def __post_init__(self) -> None:
        refuse_unless_counts(self, "max_new_tokens")
        if self.form not in ("text", "answer", "chat"):
            raise InputError(f"text-generation: form is text, answer or chat, not {self.form!r}")
        if self.form == "answer" and "{prompt}" not in self.template:
            raise InputError("text-generation: template must say where the {prompt} stands")
        if self.generate and self.form == "text":
            raise InputError(
                "text-generation: generate compares answers, which plain texts do not have: "
                "choose form=answer or form=chat"
            )

    @property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        if self.form == "chat":
            return (Column("messages", ("conversations", "chat"), kind="messages"),)
        if self.form == "answer":
            return Column("prompt", _PROMPT), Column("answer", _ANSWER, answer=True)
        return (Column("text", ("content", "code", "document", "story")),)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("exact_match",) if self.generate else ("perplexity",)

    def fault(self, row: Mapping[str, Any]) -> str | None:
        if self.form == "chat" and self.generate and row["messages"][-1]["role"] != "assistant":
            return "the last message is not the assistant's: there is no answer to compare with"
        return None

    def processor(self, model: str) -> Any:
        tokenizer = models.load_tokenizer(model)
        if self.form == "chat" and tokenizer.chat_template is None:
            raise InputError(
                f"the tokenizer of {model!r} has no chat template: set tokenizer.chat_template "
                "and save it with the model, or train on prompts with answers, form=answer"
            )
        return tokenizer

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        model, fresh = models.load_model(
            "AutoModelForCausalLM", name, config, dtype, dropout=dropout
        )
        if model.generation_config is not None and model.generation_config.pad_token_id is None:
            model.generation_config.pad_token_id = processor.pad_token_id
        return model, fresh

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, processor)

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        return [len(ids) for ids, _ in self._tokens(rows, processor)]

    # Examples

    def _tokens(self, rows: Dataset, processor: Any) -> list[tuple[list[int], list[int]]]:
        """Of each row the tokens, and the labels: tokens that count, IGNORED elsewhere."""
        end = [] if processor.eos_token_id is None else [processor.eos_token_id]
        if self.form == "text":
            texts = processor(list(rows["text"]), verbose=False)["input_ids"]
            closed = (ids if ids[-1:] == end else ids + end for ids in texts)
            return [(ids, ids) for ids in closed]
        if self.form == "chat":
            return [_chat(messages, processor) for messages in rows["messages"]]
        answers = processor(list(rows["answer"]), add_special_tokens=False, verbose=False)
        return [
            (prompt + ids + end, [IGNORED] * len(prompt) + ids + end)
            for prompt, ids in zip(
                self._prompts(rows, processor), answers["input_ids"], strict=True
            )
        ]

    def _prompts(self, rows: Dataset, processor: Any) -> list[list[int]]:
        """What the model is given to go on from; without an end token after it."""
        if self.form == "text":
            found = processor(list(rows["text"]), verbose=False)["input_ids"]
        elif self.form == "chat":
            found = [question_tokens(messages, processor) for messages in rows["messages"]]
        else:
            texts = [self.template.replace("{prompt}", prompt) for prompt in rows["prompt"]]
            found = processor(texts, verbose=False)["input_ids"]
        end = processor.eos_token_id
        return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in found]

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        if labels is None:
            prompts = self._prompts(rows, processor)
            asked: list[Example] = [
                {"input_ids": ids[-max_length:], "length": min(len(ids), max_length)}
                for ids in prompts
            ]
            return shortest_first(asked, sum(len(ids) > max_length for ids in prompts))
        examples, cut = self._whole(rows, processor, max_length)
        if self.generate:
            asked_of = self.encode(rows, processor, None, max_length)
            for example, one in zip(examples, asked_of.restore(asked_of.examples), strict=True):
                example["prompt"] = one["input_ids"]
        return shortest_first(examples, cut)

    def _whole(self, rows: Dataset, processor: Any, limit: int) -> tuple[list[Example], int]:
        tokens = self._tokens(rows, processor)
        examples = [
            {"input_ids": ids[:limit], "labels": own[:limit], "length": min(len(ids), limit)}
            for ids, own in tokens
        ]
        return examples, sum(len(ids) > limit for ids, _ in tokens)

    def encode_for_training(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Plain texts as blocks; prompts with answers one by one, without those whose answer would
        be cut off whole."""
        if self.form == "text":
            return shortest_first(_blocks(self._tokens(rows, processor), max_length))
        examples, cut = self._whole(rows, processor, max_length)
        kept = [one for one in examples if any(label != IGNORED for label in one["labels"][1:])]
        if not kept:
            raise InputError(
                f"no answer lies within {max_length} tokens of its row's start: a higher "
                "--max-length, or shorter prompts"
            )
        return shortest_first(kept, cut)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Any]:
        """(batch, longest) token ids, mask and labels; prompts alone are padded on the left."""
        if "labels" not in examples[0]:
            return padded(examples, processor, left=True)
        batch: dict[str, Any] = padded(examples, processor)
        batch["labels"] = pad(examples, "labels", IGNORED)
        if "prompt" in examples[0]:
            prompts = [{"input_ids": example["prompt"]} for example in examples]
            batch["prompts"] = padded(prompts, processor, left=True)
        return batch

    # Training and answers

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**{key: x for key, x in batch.items() if key != "prompts"})
        return outputs.loss, outputs

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        """The tokens that follow each prompt; or where there are labels to compare with, the
        negative log-likelihood and the number of tokens that count (n, 2)."""
        if self.generate or "labels" not in batch:
            return self._generated(model, batch.get("prompts", batch), processor)
        inputs = {key: x for key, x in batch.items() if key != "labels"}
        return likelihoods(model(**inputs).logits, batch["labels"])

    def _generated(self, model: Any, prompts: Batch, processor: Any) -> list[np.ndarray]:
        """Of prompts that leave too little room the end is read, half of the positions or more."""
        limit = self.limit(model, processor) - models.taken(model)
        room = max(limit - self.max_new_tokens, limit // 2)
        given = {key: x[:, -room:] for key, x in prompts.items() if key != "token_type_ids"}
        read = given["input_ids"].shape[1]
        new = min(self.max_new_tokens, limit - read)
        found = model.generate(**given, max_new_tokens=new, do_sample=False)
        return list(found[:, read:].cpu().numpy())

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        if not self.generate:
            return [tuple(map(float, row)) for row in outputs]
        return [self._compared(text) for text in _texts(outputs, processor)]

    def _compared(self, answer: str) -> str:
        found = answer.rpartition(self.after)[2] if self.after else answer
        return found.strip()

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        if not self.generate:
            return [None] * len(rows)
        if self.form == "chat":
            return [self._compared(messages[-1]["content"]) for messages in rows["messages"]]
        return [self._compared(answer) for answer in rows["answer"]]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        column = self.columns[0].name
        texts = _texts(outputs, processor)
        return [{column: rows[column][i], "generated": text} for i, text in enumerate(texts)]


def _texts(outputs: Outputs, processor: Any) -> list[str]:
    return [str(processor.decode(ids, skip_special_tokens=True)).strip() for ids in outputs]


def _blocks(tokens: Sequence[tuple[list[int], list[int]]], size: int) -> list[Example]:
    """Texts end to end, cut every `size` tokens; the rest is a block of its own."""
    line = list(itertools.chain.from_iterable(ids for ids, _ in tokens))
    cut = (line[start : start + size] for start in range(0, len(line), size))
    return [{"input_ids": ids, "labels": ids, "length": len(ids)} for ids in cut if len(ids) > 1]


def question_tokens(messages: Sequence[Mapping[str, str]], processor: Any) -> list[int]:
    """A chat up to where its last answer would begin."""
    asked = list(messages)
    while asked and asked[-1]["role"] == "assistant":
        asked.pop()
    return chat_tokens(asked, processor, add_generation_prompt=True)


def _chat(messages: Sequence[Mapping[str, str]], processor: Any) -> tuple[list[int], list[int]]:
    """The tokens of a chat, of which those of the assistant's turns count: what the template adds
    between the chat up to such a turn, with the prompt to answer, and the chat with it."""
    text = _written(messages, processor)
    ids = _of(text, processor)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            start, stop = (len(_of(text[:n], processor)) for n in _turn(messages, turn, processor))
            labels[start:stop] = ids[start:stop]
    return ids, labels


def _turn(messages: Sequence[Mapping[str, str]], turn: int, processor: Any) -> tuple[int, int]:
    """Where an assistant's turn begins and ends in the text of a chat. Templates of models that
    think write the last turn otherwise than it stands among earlier ones; one that is rewritten
    there is left out."""
    text, after = _written(messages, processor), _written(messages[: turn + 1], processor)
    before = _written(messages[:turn], processor, add_generation_prompt=True)
    start = common(text, before)
    if text.startswith(after):
        return start, len(after)
    said = messages[turn]["content"].strip()
    said += after.rpartition(said)[2]
    return start, start + len(said) * text.startswith(said, start)


def chat_tokens(messages: Sequence[Mapping[str, str]], processor: Any, **options: Any) -> list[int]:
    """By the tokenizer's template."""
    return _of(_written(messages, processor, **options), processor)


def _written(messages: Sequence[Mapping[str, str]], processor: Any, **options: Any) -> str:
    return str(processor.apply_chat_template(list(messages), tokenize=False, **options))


def _of(text: str, processor: Any) -> list[int]:
    return list(processor(text, add_special_tokens=False, verbose=False)["input_ids"])
