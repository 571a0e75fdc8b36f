"""Instructions for tasks of classification, and those that suit a few examples best."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.tasks.models import resolve

Row = tuple[str, ...]
"""The fields of one example: a text, or two of them."""

Embed = Callable[[Sequence[str]], Tensor]
"""Texts -> vectors of length 1, one a row."""

COLLECTION = (
    "Here is what somebody wrote about a film: {0}\nDid they enjoy it?\nAnswer:",
    "A customer's review: {0}\nHow does the customer feel about the product?\nAnswer:",
    "Opinion: {0}\nThe tone of this opinion is",
    "A diner says of a restaurant: {0}\nThe meal was",
    "From a newspaper: {0}\nWhich section would print this?\nSection:",
    "Article: {0}\nThe topic of the article is",
    "From an encyclopedia: {0}\nWhat kind of thing is described?\nAnswer:",
    "From a research paper: {0}\nThe field of study is",
    "Question: {0}\nWhat kind of answer does the question ask for?\nAnswer:",
    "A user says to a voice assistant: {0}\nWhat should the assistant do?\nAnswer:",
    "A client writes to the bank: {0}\nThe client's request is about",
    "Message to the help desk: {0}\nWhich team should deal with it?\nTeam:",
    "Email: {0}\nIs this email wanted by its reader?\nAnswer:",
    "A post from a social network: {0}\nWhich emotion does the writer show?\nAnswer:",
    "Comment: {0}\nIs the comment insulting?\nAnswer:",
    "Sentence: {0}\nDoes the sentence state a fact or a view?\nAnswer:",
    "Sentence: {0}\nIs its grammar correct?\nAnswer:",
    "Clause of a contract: {0}\nWhat does the clause regulate?\nAnswer:",
    "A patient's report: {0}\nThe report is about",
    "Documentation of a program: {0}\nThe package it belongs to is",
    "Text: {0}\nWhich label describes the text?\nLabel:",
    "Premise: {0}\nHypothesis: {1}\nDoes the hypothesis follow from the premise?\nAnswer:",
    "Suppose that this is true: {0}\nIs this then true as well: {1}\nAnswer:",
    "First sentence: {0}\nSecond sentence: {1}\nDo both sentences mean the same?\nAnswer:",
    "Question one: {0}\nQuestion two: {1}\nDo both ask for the same?\nAnswer:",
    "Question: {0}\nPassage: {1}\nDoes the passage answer the question?\nAnswer:",
    "Claim: {0}\nEvidence: {1}\nThe evidence makes the claim",
    "Word: {0}\nSentence: {1}\nThe word is used in the sense of",
    "Topic: {0}\nStatement: {1}\nThe attitude of the statement to the topic is",
    "Title: {0}\nText: {1}\nThe category is",
)
"""Instructions in the words of this project: `{0}`, `{1}` are the fields, and an answer follows."""


def retrieve(
    rows: Sequence[Row],
    embed: Embed,
    *,
    fields: Sequence[str] | None = None,
    collection: Sequence[str] = COLLECTION,
    top: int = 5,
) -> list[str]:
    """The instructions nearest to a task by cosine similarity, of those with as many fields.

    What they are compared with is the names of the fields, such as ("premise", "hypothesis"); where
    there are none that tell anything, the examples themselves, on average.
    """
    width = len(rows[0])
    fitting = [one for one in collection if places(one) == width]
    if not fitting:
        raise InputError(f"no instruction of the collection has {width} fields: add one")
    queries = [" and ".join(fields)] if fields else [" ".join(row) for row in rows]
    known = embed([" ".join(one.format(*[""] * width).split()) for one in fitting])
    similarity = (embed(queries) @ known.T).mean(0)
    return [fitting[i] for i in similarity.argsort(descending=True, stable=True)[:top].tolist()]


def places(instruction: str) -> int:
    """How many fields an instruction has: {0}, {1}, … ."""
    try:
        found = {
            name for _, name, _, _ in string.Formatter().parse(instruction) if name is not None
        }
    except ValueError:
        found = {"?"}
    if not found or found != {str(i) for i in range(len(found))}:
        raise InputError(f"an instruction names its fields {{0}}, {{1}}, …, not as {instruction!r}")
    return len(found)


def minilm() -> Embed:
    """Sentences by the embedded MiniLM: the mean of its last hidden states, of length 1."""
    from transformers import AutoModel, AutoTokenizer

    path = resolve("minilm")
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModel.from_pretrained(path).eval()

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        found = []
        for start in range(0, len(texts), 32):
            some = list(texts[start : start + 32])
            inputs = tokenizer(
                some, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            found.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(found)

    return embed
