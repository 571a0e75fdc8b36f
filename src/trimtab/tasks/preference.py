"""Preferences: of two answers to a prompt, the one that people chose shall have the higher reward.

    P(y₊ over y₋) = σ(r(x, y₊) - r(x, y₋))          L = - mean of log σ(r(x, y₊) - r(x, y₋))
    (Bradley and Terry 1952)

    reward    r(x, y) = what a head of one output gives of the text (Ouyang et al. 2022,
              arXiv:2203.02155)
    dpo       r(x, y) = β log π(y | x) / π₀(y | x), the reward that a language model π itself stands
              for (Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290)

π is the model with its adapter, π₀ the same model without: a second one is never loaded. Tokens,
rewards and losses are those of TRL's trainers, to rounding.

    trimtab tune --task preference --model stories260K --data pairs.jsonl --out runs/preferred

of lines {"prompt": …, "chosen": …, "rejected": …}. Against itself the base has margins of 0, and an
accuracy, in which a tie counts half, of one half; what can be compared with it is how often the
chosen answer is the more likely one, by log π.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.reference import Reference
from trimtab.tasks import models
from trimtab.tasks.task import Batch, Encoded, Example, Outputs, Task, shortest_first
from trimtab.tasks.text_generation import chat_tokens, question_tokens
from trimtab.tasks.tokens import common, pad, padded

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["dpo", "reward"]
Form = Literal["text", "chat"]
_SIDES = ("chosen", "rejected")
_PROMPT = Column("prompt", ("instruction", "question", "input", "query"), required=False)
_CHOSEN = ("preferred", "better", "winner", "answer", "completion", "response")
_REJECTED = ("dispreferred", "worse", "loser", "other")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Judged:
    """What the model gave of a batch, the texts' rewards (texts,), and of DPO log π (texts,)."""

    logits: Tensor
    rewards: Tensor
    likelihoods: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Preference(Task):
    """`kind`: a language model by DPO, or a reward model. `form`: texts that follow a prompt, or
    whole chats (messages). `beta` is DPO's β: how far a reward of 1 is from the base."""

    kind: Kind = "dpo"
    form: Form = "text"
    beta: float = 0.1

    name: ClassVar[str] = "preference"
    by_token: ClassVar[bool] = True  # the two answers of a pair stand in one batch: no parts
    eval_batch: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if self.kind not in ("dpo", "reward"):
            raise InputError(f"preference: kind is dpo or reward, not {self.kind!r}")
        if self.form not in ("text", "chat"):
            raise InputError(f"preference: form is text or chat, not {self.form!r}")
        β = self.beta
        if isinstance(β, bool) or not isinstance(β, int | float) or not β > 0:
            raise InputError(f"preference: beta is above 0, not {β!r}")

    @property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        """`rejected` may be absent where answers are only given their rewards."""
        if self.form == "chat":
            chosen = Column("chosen", (*_CHOSEN, "messages"), kind="messages")
            return chosen, Column("rejected", _REJECTED, required=False, kind="messages")
        chosen, rejected = Column("chosen", _CHOSEN), Column("rejected", _REJECTED, required=False)
        return _PROMPT, chosen, rejected

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def metrics(self) -> tuple[str, ...]:
        both = ("reward_accuracy", "reward_margin")
        return (*both, "likelihood_accuracy") if self.kind == "dpo" else both

    def fault(self, row: Mapping[str, Any]) -> str | None:
        if "rejected" not in row:
            return "there is no rejected answer beside the chosen one"
        same = row["chosen"] == row["rejected"]
        return "the chosen and the rejected answer are the same" if same else None

    def unfit(self, row: Mapping[str, Any], model: str) -> str | None:
        return "empty rejected" if "rejected" in row and not row["rejected"] else None

    def processor(self, model: str) -> Any:
        tokenizer = models.load_tokenizer(model)
        if self.form == "chat" and tokenizer.chat_template is None:
            raise InputError(
                f"the tokenizer of {model!r} has no chat template: set tokenizer.chat_template "
                "and save it with the model, or give texts, form=text"
            )
        return tokenizer

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        if self.kind == "dpo":
            config = models.configuration(name)
            return models.load_model("AutoModelForCausalLM", name, config, dtype, dropout=dropout)
        config = models.configuration(name, num_labels=1)
        config.pad_token_id = processor.pad_token_id
        auto = "AutoModelForSequenceClassification"
        return models.load_model(auto, name, config, dtype, dropout=dropout)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, processor)

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        return [example["length"] for example in self._examples(rows, processor)]

    # Examples

    def _examples(self, rows: Dataset, processor: Any) -> list[Example]:
        """Of each row the tokens of the prompt with either answer, and where the answers start."""
        sides = [name for name in _SIDES if name in rows.column_names]
        if self.form == "chat":
            prompts = [question_tokens(chat, processor) for chat in rows["chosen"]]
            tokens = {name: [chat_tokens(chat, processor) for chat in rows[name]] for name in sides}
        else:
            texts = rows["prompt"] if "prompt" in rows.column_names else [""] * len(rows)
            prompts = processor(list(texts), verbose=False)["input_ids"]
            tokens = {name: _closed(texts, rows[name], processor) for name in sides}
        examples = []
        for prompt, *answers in zip(prompts, *tokens.values(), strict=True):
            start = min(common(prompt, ids) for ids in answers)
            length = max(map(len, answers))
            examples.append(
                {**dict(zip(sides, answers, strict=True)), "start": start, "length": length}
            )
        return examples

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples = self._examples(rows, processor)
        cut = sum(example["length"] > max_length for example in examples)
        for example in examples:
            example["length"] = min(example["length"], max_length)
            for side in set(_SIDES) & set(example):
                example[side] = example[side][:max_length]
        return shortest_first(examples, cut)

    def encode_for_training(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Without pairs whose answers would be cut off whole."""
        found = self.encode(rows, processor, labels, max_length)
        kept = [one for one in found.examples if one["start"] < max_length]
        if not kept:
            raise InputError(
                f"no answer lies within {max_length} tokens of its prompt's start: a higher "
                "--max-length, or shorter prompts"
            )
        return shortest_first(kept, found.truncated)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(texts, longest) token ids and mask, the chosen before the rejected; which example each
        is of (texts,); for DPO 1 where a token is of an answer (texts, longest)."""
        n = len(examples)
        texts = [
            {
                "input_ids": one[side],
                "answer": [int(i >= one["start"]) for i in range(len(one[side]))],
            }
            for side in _SIDES
            for one in examples
            if side in one
        ]
        batch = padded(texts, processor)
        batch["examples"] = torch.arange(len(texts)) % n
        if self.kind == "dpo":
            batch["completion_mask"] = pad(texts, "answer", 0)
        return batch

    # Training and answers

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Judged]:
        judged = self.judged(model, batch)
        chosen, rejected = judged.rewards.chunk(2)
        return -F.logsigmoid(chosen - rejected).mean(), judged

    def judged(self, model: Any, batch: Batch) -> Judged:
        """The reward r(x, y) of each text, in fp32."""
        inputs = {key: batch[key] for key in _INPUTS if key in batch}
        if self.kind == "reward":
            logits = model(**inputs).logits
            return Judged(logits, logits.float().squeeze(-1))
        with torch.no_grad():
            base = log_likelihood(Reference(model)(**inputs).logits, batch)
        logits = model(**inputs).logits
        own = log_likelihood(logits, batch)
        return Judged(logits, self.beta * (own - base), own)

    def rows_of(self, outputs: Judged, batch: Batch) -> Outputs:
        """(n, 2, 1): the rewards of the chosen and the rejected answer, (n, 1, 1) without the
        latter; of DPO with log π beside each reward, (n, 2, 2)."""
        n = int(batch["examples"].max()) + 1
        found = [one for one in (outputs.rewards, outputs.likelihoods) if one is not None]
        return torch.stack(found, -1).view(-1, n, len(found)).transpose(0, 1).float().cpu().numpy()

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        return self.rows_of(self.judged(model, batch), batch)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        """Each pair's margins, of rewards and of log π."""
        return [tuple(map(float, chosen - rejected)) for chosen, rejected in outputs]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        return [None] * len(rows)

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        names = [column.name for column in self.columns if column.name in rows.column_names]
        found = []
        for i, rewards in enumerate(outputs[..., 0].tolist()):
            told = {name: rows[name][i] for name in names}
            told["reward"] = round(rewards[0], 6)
            if len(rewards) == 2:
                told["rejected_reward"] = round(rewards[1], 6)
                told["margin"] = round(rewards[0] - rewards[1], 6)
            found.append(told)
        return found

    def shown(self, rows: Dataset, index: int) -> str:
        prompt = rows["prompt"][index] if "prompt" in rows.column_names else ""
        return f"{prompt}{rows['chosen'][index]}"


def log_likelihood(logits: Tensor, batch: Batch) -> Tensor:
    """log π(y | x) (texts,) from logits (texts, length, vocabulary): the sum over y's tokens."""
    targets, counted = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:]
    each = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
    return -(each * counted).sum(1)


def _closed(prompts: Sequence[str], answers: Sequence[str], processor: Any) -> list[list[int]]:
    """The tokens of prompts with their answers, and the end token."""
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    end = [] if processor.eos_token_id is None else [processor.eos_token_id]
    found = processor(texts, verbose=False)["input_ids"]
    return [ids if ids[-1:] == end else ids + end for ids in found]
