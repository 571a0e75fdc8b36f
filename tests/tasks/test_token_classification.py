"""Tags of words: which token a word is read at, what is cut, what is refused; a run on WNUT17."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks.token_classification import (
    TokenClassification,
    begins,
    by_word,
    entities,
    tokenised,
)
from trimtab.tune.config import parse
from trimtab.tune.folder import Run
from trimtab.tune.progress import read_log
from trimtab.tune.run import tune

WNUT = Path(__file__).parents[3] / "shared" / "data" / "wnut17"
TASK = TokenClassification()
LABELS = ["O", "B-person", "I-person"]
# parted, joined, invisible, empty to the tokenizer, of several scripts, of many characters
WORDS = ("Ada", "@Ada_L", "don't", "\u200b", "\xad", "İstanbul", "東京都", "e\u0301té", "a" * 40)
WORDS += ("👩‍👩‍👧", "C++", "...", "##x", "[SEP]", "naïve-ish", "I'm", "\u202eabc", "1,000.5%")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return TASK.processor("minilm")


def rows(words: list[list[str]], tags: list[list[str]] | None = None) -> Dataset:
    return Dataset.from_dict({"tokens": words, "tags": tags or [["O"] * len(w) for w in words]})


@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_word_is_read_at_its_first_token(tokenizer: Any, words: list[str]) -> None:
    """Where tokens of the words alone, laid end to end, say that it begins."""
    example = tokenised(tokenizer, [words], 10**9)[0][0]
    alone = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    expected = [
        index if place == 0 else -1 for index, ids in enumerate(alone) for place in range(len(ids))
    ]
    assert example["input_ids"][1:-1] == [token for ids in alone for token in ids]
    assert example["words"] == [-1, *expected, -1]


def test_a_word_without_a_token_is_outside(tokenizer: Any) -> None:
    words = ["Ada", "\u200b", "Lovelace"]
    example = tokenised(tokenizer, [words], 64)[0][0]
    assert [word for word in example["words"] if word >= 0] == [0, 2]
    best = by_word(np.full(len(example["words"]), 1), np.array(example["words"]))
    tags = TASK.answers([best], rows([words]), LABELS, tokenizer)
    assert tags == [["B-person", "O", "B-person"]]


def test_words_that_are_cut_off_are_outside(tokenizer: Any) -> None:
    data = rows([["Ada"] * 20, ["Ada"]], [["B-person"] * 20, ["B-person"]])
    encoded = TASK.encode(data, tokenizer, LABELS, 8)
    assert encoded.truncated == 1
    assert [example["length"] for example in encoded.examples] == [3, 8]
    batch = TASK.collate(encoded.examples, tokenizer)
    logits = F.one_hot(torch.ones_like(batch["input_ids"]), 3)
    found = encoded.restore(TASK.rows_of(SimpleNamespace(logits=logits), batch))
    assert TASK.answers(found, data, LABELS, tokenizer) == [
        ["B-person"] * 6 + ["O"] * 14,
        ["B-person"],
    ]


def test_the_loss_is_a_mean_over_words(tokenizer: Any) -> None:
    data = rows([["Lovelace", "wrote"], ["Ada"]], [["B-person", "O"], ["B-person"]])
    batch = TASK.collate(TASK.encode(data, tokenizer, LABELS, 64).examples, tokenizer)
    logits = torch.randn(*batch["input_ids"].shape, 3)
    given: dict[str, Any] = {}

    def model(**inputs: Any) -> Any:
        given.update(inputs)
        return SimpleNamespace(logits=logits)

    at = batch["labels"] >= 0
    assert int(at.sum()) == 3
    expected = F.cross_entropy(logits[at], batch["labels"][at])
    torch.testing.assert_close(TASK.loss(model, batch)[0], expected)
    assert set(given) <= {"input_ids", "attention_mask", "token_type_ids"}


def test_a_batch_without_a_word_has_no_loss(tokenizer: Any) -> None:
    batch = TASK.collate(TASK.encode(rows([["\u200b"]]), tokenizer, LABELS, 8).examples, tokenizer)
    model = lambda **_: SimpleNamespace(logits=torch.randn(1, 2, 3))  # noqa: E731
    assert float(TASK.loss(model, batch)[0]) == 0


@given(st.lists(st.sampled_from([f"{form}-{kind}" for form in "BIES" for kind in "xy"] + ["O"])))
def test_entities_are_those_that_the_metric_counts(tags: list[str]) -> None:
    assert entities(tags) == [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


def test_what_goes_on_with_a_word_is_no_beginning() -> None:
    assert begins([None, 0, 0, 1, 2, 2, None, None]) == [-1, 0, -1, 1, 2, -1, -1, -1]


def test_labels_begin_with_outside() -> None:
    data = rows([["a"] * 5], [["I-x", "B-y", "O", "B-x", "I-y"]])
    assert TASK.labels(data) == ["O", "B-x", "I-x", "B-y", "I-y"]


def test_byte_level_words_stand_after_a_space(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<pad>"])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokens = TASK.processor(str(tmp_path))([["ab", "c"]], is_split_into_words=True).tokens(0)
    assert tokens == ["Ġ", "a", "b", "Ġ", "c"]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O"], "1 of the 1 rows do not have one tag for each word: row 1: 2 words, 1 tags"),
        (["O", "B-place"], r"never saw: \['B-place'\]"),
    ],
)
def test_tags_that_do_not_fit(tokenizer: Any, tags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TASK.encode(rows([["Ada", "wrote"]], [tags]), tokenizer, LABELS, 16)


@pytest.mark.parametrize("tags", [["NN", "VB"], ["O", "O"]])
def test_tags_without_entities(tags: list[str]) -> None:
    with pytest.raises(InputError, match="B-type and I-type"):
        TASK.labels(rows([["Ada", "wrote"]], [tags]))


# A run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    if not WNUT.is_dir():
        pytest.skip("WNUT17 is not beside the repository")
    data, out = tmp_path_factory.mktemp("wnut"), tmp_path_factory.mktemp("runs") / "wnut"
    parts = {"train": "wnut17train.conll", "validation": "emerging.dev.conll"}
    parts["test"] = "emerging.test.annotated"
    for split, name in parts.items():
        text = (WNUT / name).read_text(encoding="utf8").replace("\t\n", "\n")
        blocks = text.split("\n\n")[: 320 if split == "train" else 40]
        (data / f"{split}.conll").write_text("\n\n".join(blocks), encoding="utf8")
    fields = {"model": "minilm", "data": str(data), "out": str(out), "max_steps": 12}
    fields |= {"task": "token-classification", "lr": 3e-3, "batch_size": 8, "max_length": 32}
    fields |= {"dtype": "float32", "attention": "eager", "products": "exact", "eval_every": 4}
    return out, tune(parse(fields, "a test"), quiet=True)


def test_a_run_reports_and_evaluates_the_same(finished: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = finished
    assert metrics["metric"] == "entity_f1"
    assert metrics["test"]["n"] == 40
    again = evaluate(str(out), None, "test")
    assert again["value"] == metrics["test"]
    assert again["base"] == metrics["baselines"]["base"]


def test_a_run_learns(finished: tuple[Path, dict[str, Any]]) -> None:
    """So few steps find no entities yet; but the loss falls."""
    losses = [one["eval_loss"] for one in read_log(Run(finished[0]).log) if "eval_loss" in one]
    assert losses[-1] < losses[0] - 0.05


def test_predict_tells_entities(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    path.write_text(json.dumps({"tokens": ["Ada", "flew", "to", "London"]}) + "\n")
    (told,) = predict(str(finished[0]), str(path))
    assert len(told["tags"]) == 4
    assert told["entities"] == [
        {"type": kind, "text": " ".join(told["tokens"][a:b]), "start": a, "end": b}
        for kind, a, b in entities(told["tags"])
    ]


def test_predict_reads_lines(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.BytesIO(b"Ada flew to London .\nNobody knows why\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines))
    told = predict(str(finished[0]), "-")
    assert [one["tokens"] for one in told] == [
        ["Ada", "flew", "to", "London", "."],
        ["Nobody", "knows", "why"],
    ]


def test_new_data_with_other_tags_is_refused(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "new.jsonl"
    path.write_text(json.dumps({"tokens": ["Ada"], "tags": ["B-ship"]}) + "\n")
    with pytest.raises(InputError, match="B-ship"):
        evaluate(str(finished[0]), str(path), "test")
