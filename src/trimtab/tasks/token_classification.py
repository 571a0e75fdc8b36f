"""Token classification: a tag for each word of a text, such as what it names.

A word is read at its first token f (Devlin et al. 2019, arXiv:1810.04805, section 5.3):

    tag(word) = argmax z(f)        L = mean over all words of  -log softmax(z(f))[tag]

The tokens that go on with a word bear no tag. A word beyond the longest sequence, or of which the
tokenizer leaves nothing, is answered by "O". Tags say where entities begin and go on (Ramshaw and
Marcus 1995, arXiv:cmp-lg/9505040): B-person I-person O; F1 counts an entity that is found whole.

    trimtab tune --task token-classification --model minilm --data people.jsonl --out runs/people

of lines {"tokens": ["Ada", "Lovelace", "wrote"], "tags": ["B-person", "I-person", "O"]}, or of
CoNLL files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.task import Batch, Encoded, Example, Outputs, Task, shortest_first
from trimtab.tasks.text_classification import known_labels
from trimtab.tasks.tokens import IGNORED, pad, padded

if TYPE_CHECKING:
    from datasets import Dataset

OUTSIDE = "O"
_NO_WORD = -1
_SHOWN = 5  # wrong rows or tags, in a message


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """Words with a tag each, of the forms O, B-type and I-type (E- and S- too)."""

    name: ClassVar[str] = "token-classification"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("tokens", ("words", "sentence", "text"), kind="words"),
        Column("tags", ("ner_tags", "labels", "label", "entities", "ner"), kind="tags"),
    )
    by_token: ClassVar[bool] = True  # a part with fewer words must not weigh as much as another

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("entity_f1",)

    def labels(self, rows: Dataset) -> list[str]:
        """ "O" first, and the B and I of a type side by side."""
        found = {tag for tags in rows["tags"] for tag in tags}
        _refuse_forms(found)
        return sorted(found, key=lambda tag: (tag != OUTSIDE, tag[2:], tag))

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        return models.in_own_order(name, labels)

    def processor(self, model: str) -> Any:
        tokenizer = models.load_tokenizer(model)
        return spaced(refuse_slow(tokenizer, model))

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: Any, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name, **models.of_labels(labels))
        model, fresh = models.load_model(
            "AutoModelForTokenClassification", name, config, dtype, dropout=dropout
        )
        return model, models.with_head(name, model, fresh, labels)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        return [example["length"] for example in tokenised(processor, rows["tokens"], 10**9)[0]]

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, processor)

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples, truncated = tokenised(processor, rows["tokens"], max_length)
        if labels is not None:
            for example, indexes in zip(examples, _indexes(rows, labels), strict=True):
                example["labels"] = [
                    IGNORED if word == _NO_WORD else indexes[word] for word in example["words"]
                ]
        return shortest_first(examples, truncated)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(batch, longest): token ids, mask, the word that begins at each token, its label."""
        batch = padded(examples, processor)
        batch["words"] = pad(examples, "words", _NO_WORD)
        if "labels" in examples[0]:
            batch["labels"] = pad(examples, "labels", IGNORED)
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs, labels = model(**_read(batch)), batch["labels"]
        logits = outputs.logits.float().flatten(0, 1)
        total = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1), outputs

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """The best label of each word, as far as the tokens reach; -1 without a token."""
        best = outputs.logits.argmax(-1).cpu().numpy()
        return [by_word(*row) for row in zip(best, batch["words"].cpu().numpy(), strict=True)]

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        return self.rows_of(model(**_read(batch)), batch)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[list[str]]:
        """A tag for every word."""
        return [
            _tags(best, len(words), labels)
            for best, words in zip(outputs, rows["tokens"], strict=True)
        ]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[list[str]]:
        return [list(tags) for tags in rows["tags"]]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        answers = self.answers(outputs, rows, labels, processor)
        return [
            {"tokens": list(words), "tags": tags, "entities": _named(words, tags)}
            for words, tags in zip(rows["tokens"], answers, strict=True)
        ]

    def shown(self, rows: Dataset, index: int) -> str:
        return " ".join(rows["tokens"][index])

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        known_labels([tag for tags in rows["tags"] for tag in tags], labels, where)


def refuse_slow(tokenizer: Any, model: str) -> Any:
    """The tokenizer, if it tells of what its tokens were made."""
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {model!r} does not tell which characters a token stands for, which "
            "this task needs: convert it to a tokenizer.json, or choose another model"
        )
    return tokenizer


def spaced(tokenizer: Any) -> Any:
    """The tokenizer, where it is byte-level with a space before each word: by that its vocabulary
    knows the words of a sentence."""
    from tokenizers.pre_tokenizers import ByteLevel

    parted = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(parted, ByteLevel):
        parted.add_prefix_space = True
    return tokenizer


def tokenised(
    tokenizer: Any, words: Iterable[Sequence[str]], max_length: int
) -> tuple[list[Example], int]:
    """An example of each list of words, with the word that begins at each token in `words`, and how
    many had to be cut."""
    made = tokenizer([list(row) for row in words], is_split_into_words=True, verbose=False)
    examples, truncated = _examples(tokenizer, made), 0
    long = [i for i, example in enumerate(examples) if example["length"] > max_length]
    if long:
        given = [list(row) for row in words]
        few = tokenizer(
            [given[i] for i in long],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
        )
        for i, example in zip(long, _examples(tokenizer, few), strict=True):
            examples[i] = example
        truncated = len(long)
    return examples, truncated


def _examples(tokenizer: Any, made: Any) -> list[Example]:
    keys = [key for key in ("input_ids", "token_type_ids") if key in made]
    return [
        {
            **{key: made[key][i] for key in keys},
            "words": begins(made.word_ids(i)),
            "length": len(ids),
        }
        for i, ids in enumerate(made["input_ids"])
    ]


def begins(words: Sequence[int | None]) -> list[int]:
    """Of each token's word: the word where it begins, elsewhere -1."""
    before = (None, *words)
    return [
        _NO_WORD if word is None or word == last else word
        for word, last in zip(words, before[:-1], strict=True)
    ]


def by_word(best: np.ndarray, words: np.ndarray) -> np.ndarray:
    """`best` (tokens) at the tokens where words begin, in the places of these words."""
    at = words != _NO_WORD
    out = np.full(int(words.max(initial=-1)) + 1, -1)
    out[words[at]] = best[at]
    return out


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, one beyond the last) of each. An I without its B begins one, too."""
    found: list[tuple[str, int, int]] = []
    open_ = False
    for i, tag in enumerate(tags):
        form, kind = tag[:1], tag[2:]
        goes_on = open_ and form in "IE" and found[-1][0] == kind
        if goes_on:
            found[-1] = (kind, found[-1][1], i + 1)
        elif tag != OUTSIDE:
            found.append((kind, i, i + 1))
        open_ = tag != OUTSIDE and form not in "ES"
    return found


def _read(batch: Batch) -> dict[str, Any]:
    """What the model takes of it."""
    return {key: x for key, x in batch.items() if key not in ("words", "labels")}


def _tags(best: np.ndarray, count: int, labels: Sequence[str]) -> list[str]:
    reached = [OUTSIDE if label < 0 else labels[label] for label in best]
    return [*reached, *[OUTSIDE] * (count - len(reached))]


def _named(words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"type": kind, "text": " ".join(words[first:end]), "start": first, "end": end}
        for kind, first, end in entities(tags)
    ]


def _indexes(rows: Dataset, labels: Sequence[str]) -> list[list[int]]:
    _refuse_ragged(rows)
    given = list(rows["tags"])
    known_labels([tag for tags in given for tag in tags], labels, "the data")
    index = {label: i for i, label in enumerate(labels)}
    return [[index[tag] for tag in tags] for tags in given]


def _refuse_ragged(rows: Dataset) -> None:
    counts = [
        (i, len(words), len(tags))
        for i, (words, tags) in enumerate(zip(rows["tokens"], rows["tags"], strict=True), start=1)
    ]
    ragged = [(i, words, tags) for i, words, tags in counts if words != tags]
    if ragged:
        first = "; ".join(f"row {i}: {w} words, {t} tags" for i, w, t in ragged[:_SHOWN])
        raise InputError(
            f"{len(ragged)} of the {len(counts)} rows do not have one tag for each word: {first}"
        )


def _refuse_forms(found: set[str]) -> None:
    wrong = [tag for tag in found if tag != OUTSIDE and (tag[1:2] != "-" or tag[0] not in "BIES")]
    if wrong or found <= {OUTSIDE}:
        what = f"these are not: {sorted(wrong)[:_SHOWN]}" if wrong else "there is no entity in it"
        raise InputError(
            "token-classification reads entities from tags of the forms O, B-type and I-type; in "
            f"the training data {what}"
        )
