"""Extractive question answering: the span of a context that answers a question.

The head gives each token i a start score s_i and an end score e_i (Devlin et al. 2019,
arXiv:1810.04805, section 4.2):

    answer = argmax over i <= j of  s_i + e_j
    L      = ½ (-log softmax(s)[start] - log softmax(e)[end])

A context that does not fit is read in windows that overlap by `stride` tokens. To train, each is an
example, and one that does not hold the answer whole points at its first token instead. To answer,
the best span of all windows counts, which is that of the context read at once where scores agree.

    trimtab tune --task question-answering --model minilm --data asked.jsonl --out runs/asked

of lines {"question": "Who wrote it?", "context": "… by Ada Lovelace …", "answer": "Ada Lovelace"},
with "answer_start" where the answer's first place in the context is not the one meant; or with
SQuAD's "answers": {"text": […], "answer_start": […]} (Rajpurkar et al. 2016, arXiv:1606.05250), of
which the first is trained on and any is right. With `unanswerable`, both may be empty (SQuAD 2,
arXiv:1806.03822).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.task import Batch, Encoded, Example, Outputs, Task, shortest_first
from trimtab.tasks.token_classification import refuse_slow
from trimtab.tasks.tokens import padded

if TYPE_CHECKING:
    from datasets import Dataset

_AT_ONCE = 64  # windows: a context may have hundreds
_NO_ANSWER = "there is no answer; if some questions have none: --task-arg unanswerable=true"
_NOWHERE = (-1, -1)  # the span of a token that is not the context's


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """`stride`: the tokens that a window shares with the one before, at most a quarter of it;
    `longest`: of answers, in tokens; `unanswerable`: some questions have no answer in their
    context, and none is given where the first tokens' scores are above the best span's."""

    stride: int = 64
    longest: int = 30
    unanswerable: bool = False

    name: ClassVar[str] = "question-answering"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("question", ("query",)),
        Column("context", ("passage", "paragraph", "document", "text")),
        Column("answer", ("answers", "answer_text"), kind="answers"),
        Column("answer_start", ("start",), required=False, kind="number"),
    )
    eval_batch: ClassVar[int] = 16  # rows, of some windows each

    def __post_init__(self) -> None:
        for option, least in (("stride", 0), ("longest", 1)):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"question-answering: {option} is a number of tokens, at least {least}, not "
                    f"{value!r}"
                )
        if not isinstance(self.unanswerable, bool):
            raise InputError(
                f"question-answering: unanswerable is true or false, not {self.unanswerable!r}"
            )

    def fault(self, row: Mapping[str, Any]) -> str | None:
        if not row["answer"]:
            return None if self.unanswerable else _NO_ANSWER
        for one in row["answer"]:
            start = _start(one, row.get("answer_start"))
            if place(row["context"], one["text"], start) < 0:
                where = "" if start is None else f" at answer_start {start}"
                return f"the answer {one['text']!r:.60} is not in its context, word for word{where}"
        return None

    @property
    def metrics(self) -> tuple[str, ...]:
        return "squad_f1", "squad_exact_match"

    @property
    def given(self) -> tuple[str, ...]:
        return "question", "context"

    def processor(self, model: str) -> Any:
        return refuse_slow(models.load_tokenizer(model), model)

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        return models.load_model(
            "AutoModelForQuestionAnswering", name, config, dtype, dropout=dropout
        )

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        made = processor(list(rows["question"]), list(rows["context"]), verbose=False)
        return [len(ids) for ids in made["input_ids"]]

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, processor)

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """An example is a row with all its windows."""
        found, cut = self._windows(rows, processor, labels is not None, max_length)
        return shortest_first([_example(windows) for windows in found], cut)

    def encode_for_training(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """An example is a window, so that batches are of one size."""
        found, cut = self._windows(rows, processor, labels is not None, max_length)
        return shortest_first([_example([one]) for windows in found for one in windows], cut)

    def _windows(
        self, rows: Dataset, processor: Any, labelled: bool, max_length: int
    ) -> tuple[list[list[Example]], int]:
        """Of each row, and how many questions were cut."""
        contexts = list(rows["context"])
        questions, cut = _fitting(processor, list(rows["question"]), max_length)
        found = windows(processor, questions, contexts, max_length, self.stride)
        if labelled:
            for of_row, (start, end) in zip(found, places(rows), strict=True):
                answer = covered(of_row, start, end)
                for window in of_row:
                    window["labels"] = target(window["spans"], answer)
        return found, cut

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(windows, longest): token ids, mask, and with a last axis of two the characters of the
        context that a token stands for; (windows): the example of each; `labels` (windows, 2)."""
        flat = [window for example in examples for window in example["windows"]]
        batch = padded(flat, processor)
        batch["spans"] = torch.full((*batch["input_ids"].shape, 2), -1)
        for row, window in enumerate(flat):
            batch["spans"][row, : window["length"]] = torch.tensor(window["spans"])
        counts = torch.tensor([len(example["windows"]) for example in examples])
        batch["rows"] = torch.arange(len(examples)).repeat_interleave(counts)
        if "labels" in flat[0]:
            batch["labels"] = torch.tensor([window["labels"] for window in flat])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs, labels = _scores(model, batch), batch["labels"]
        start, end = (F.cross_entropy(z, labels[:, i]) for i, z in enumerate(outputs))
        return (start + end) / 2, outputs

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """For each example (first character, one beyond the last, probability) of its answer."""
        rows = batch["rows"]
        found = [
            best_span(
                *(z[rows == row] for z in (*outputs, batch["spans"])),
                self.longest,
                self.unanswerable,
            )
            for row in range(int(rows.max()) + 1)
        ]
        return np.array(found)

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        return self.rows_of(_scores(model, batch), batch)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[str]:
        return [
            context[int(start) : int(end)].strip()
            for context, (start, end, _) in zip(rows["context"], outputs, strict=True)
        ]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[str]:
        return [[one["text"] for one in answers] or [""] for answers in rows["answer"]]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        answers = self.answers(outputs, rows, labels, processor)
        return [
            {
                "question": question,
                "answer": answer,
                "start": int(start),
                "end": int(end),
                "probability": round(float(probability), 6),
            }
            for question, answer, (start, end, probability) in zip(
                rows["question"], answers, outputs, strict=True
            )
        ]


def windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_length: int,
    stride: int,
) -> list[list[Example]]:
    """Of each question with its context the sequences that together hold the context whole."""
    made = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=min(stride, max_length // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    keys = [key for key in ("input_ids", "token_type_ids") if key in made]
    found: list[list[Example]] = [[] for _ in questions]
    for i, row in enumerate(made["overflow_to_sample_mapping"]):
        of_context = [part == 1 for part in made.sequence_ids(i)]
        spans = [
            span if inside and span[0] < span[1] else _NOWHERE
            for inside, span in zip(of_context, made["offset_mapping"][i], strict=True)
        ]
        window = {key: made[key][i] for key in keys}
        found[row].append({**window, "spans": spans, "length": len(spans)})
    return found


def _fitting(tokenizer: Any, questions: list[str], max_length: int) -> tuple[list[str], int]:
    """Questions that leave half of the length to the context, and how many were cut to do so."""
    most, cut = max_length // 2, 0
    if max_length - most - tokenizer.num_special_tokens_to_add(pair=True) <= max_length // 4:
        raise InputError(
            f"--max-length {max_length} leaves no room for a question and its context: take 32 or "
            "more"
        )
    made = tokenizer(
        questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for i, offsets in enumerate(made["offset_mapping"]):
        if len(offsets) > most:
            questions[i] = questions[i][: offsets[most - 1][1]]
            cut += 1
    return questions, cut


def covered(found: Sequence[Example], start: int, end: int) -> set[tuple[int, int]]:
    """Of a row's windows, the spans of all tokens that stand for its characters `start` to `end`.
    Some characters, as invisible ones, no token stands for."""
    spans = {span for window in found for span in window["spans"] if span != _NOWHERE}
    return {span for span in spans if span[1] > start and span[0] < end}


def target(spans: Sequence[tuple[int, int]], answer: set[tuple[int, int]]) -> list[int]:
    """The first and last token of an answer's spans; position 0 twice where they are not all
    here."""
    if not answer or not answer <= set(spans):
        return [0, 0]
    at = [i for i, span in enumerate(spans) if span in answer]
    return [at[0], at[-1]]


def places(rows: Dataset) -> list[tuple[int, int]]:
    """Where each row's first answer stands in its context, in characters; (0, 0) for none."""
    told = rows["answer_start"] if "answer_start" in rows.column_names else [None] * len(rows)
    found = []
    for context, answers, beside in zip(rows["context"], rows["answer"], told, strict=True):
        first = answers[0] if answers else {"text": "", "start": 0}
        start = place(context, first["text"], _start(first, beside)) if answers else 0
        found.append((start, start + len(first["text"])))
    return found


def _start(answer: Mapping[str, Any], beside: Any) -> Any:
    """Where an answer is said to stand: by itself, or by a column of its own."""
    return answer["start"] if answer["start"] >= 0 else beside


def place(context: str, answer: str, start: Any) -> int:
    """The answer's first character in the context; -1 where it is not there."""
    if start in (None, "") or start != start:
        return context.find(answer) if answer else -1
    at = int(float(start))
    return at if at >= 0 and answer and context.startswith(answer, at) else -1


def best_span(
    starts: Tensor, ends: Tensor, spans: Tensor, longest: int, may_be_none: bool = False
) -> tuple[float, float, float]:
    """Of a row's windows (windows, length), the span with the highest sum of its scores that lies
    in the context and is at most `longest` tokens: its characters, and softmax's probability of its
    start and end among all tokens of the windows. Where there `may_be_none`, and each window's
    first token has a higher sum than it, no characters."""
    inside = spans[..., 0] >= 0
    if not inside.any():
        return 0.0, 0.0, 0.0
    first, last = (z.masked_fill(~inside, -torch.inf) for z in (starts, ends))
    sums = first[:, :, None] + last[:, None, :]
    n = sums.shape[-1]
    allowed = torch.ones(n, n, dtype=torch.bool, device=sums.device).triu().tril(longest - 1)
    sums = sums.masked_fill(~allowed, -torch.inf)
    window, i, j = np.unravel_index(int(sums.argmax()), sums.shape)
    every = starts.logsumexp((0, 1)) + ends.logsumexp((0, 1))
    chance = (sums[window, i, j] - every).exp()
    none = (starts[:, 0] + ends[:, 0]).min()
    if may_be_none and none > sums[window, i, j]:
        return 0.0, 0.0, float((none - every).exp())
    return float(spans[window, i, 0]), float(spans[window, j, 1]), float(chance)


def _scores(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Start and end scores (windows, length) in fp32, -inf at padding."""
    inputs = {k: x for k, x in batch.items() if k not in ("labels", "spans", "rows")}
    parts = [
        model(**{key: x[at : at + _AT_ONCE] for key, x in inputs.items()})
        for at in range(0, len(batch["rows"]), _AT_ONCE)
    ]
    padding = batch["attention_mask"] == 0
    start, end = (
        torch.cat([getattr(part, name).float() for part in parts]).masked_fill(padding, -torch.inf)
        for name in ("start_logits", "end_logits")
    )
    return start, end


def _example(found: list[Example]) -> Example:
    return {"windows": found, "length": max(window["length"] for window in found)}
