"""Answers as spans: windows, targets, the best span, answers that are not there; a run on E2E."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from trimtab.core.errors import InputError
from trimtab.data import load
from trimtab.data.kinds import read_cell
from trimtab.evaluate.metrics import METRICS
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks.question_answering import (
    QuestionAnswering,
    best_span,
    covered,
    place,
    target,
    windows,
)
from trimtab.tune.config import parse
from trimtab.tune.folder import Run
from trimtab.tune.progress import read_log
from trimtab.tune.run import tune

ROOT = Path(__file__).parents[2]
E2E = ROOT.parent / "shared" / "data" / "e2e_nlg"
TASK = QuestionAnswering()
WORDS = ("river", "Café", "don't", "pub", "unbelievable", "£20-25", "東京", "\u200b", "C++", ".")
contexts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=80).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return TASK.processor("minilm")


def rows(**columns: list[Any]) -> Dataset:
    if "answer" in columns:
        columns["answer"] = [read_cell(TASK.columns[2], one) for one in columns["answer"]]
    return Dataset.from_dict(columns)


class Oracle:
    """Scores that depend on a token alone."""

    def __init__(self) -> None:
        self.start, self.end = torch.randn(2, 31_000, generator=torch.Generator().manual_seed(0))
        self.sizes: list[int] = []

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.sizes.append(len(input_ids))
        return SimpleNamespace(start_logits=self.start[input_ids], end_logits=self.end[input_ids])


def asked(task: QuestionAnswering, tokenizer: Any, data: Dataset, max_length: int) -> Any:
    encoded = task.encode(data, tokenizer, None, max_length)
    batch = task.collate(encoded.examples, tokenizer)
    return encoded.restore(task.ask(Oracle(), batch, tokenizer))


@given(texts=st.lists(contexts, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_windows_answer_as_one_long_context(tokenizer: Any, texts: list[str]) -> None:
    """Where a span as long as an answer may be is whole in some window."""
    task = QuestionAnswering(stride=8, longest=8)
    data = rows(question=["where?"] * len(texts), context=texts)
    whole, parts = (asked(task, tokenizer, data, n) for n in (512, 32))
    assert parts[:, :2].tolist() == whole[:, :2].tolist()


@given(context=contexts, stride=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_windows_hold_the_context_whole(tokenizer: Any, context: str, stride: int) -> None:
    long = windows(tokenizer, ["q"], [context], 512, stride)[0]
    short = windows(tokenizer, ["q"], [context], 32, stride)[0]
    assert len(long) == 1
    assert {s for window in short for s in window["spans"]} == set(long[0]["spans"])
    assert all(window["length"] <= 32 for window in short)


@given(context=contexts, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_target_gives_its_answer_back(tokenizer: Any, context: str, data: Any) -> None:
    """In every window that holds it; elsewhere it is the first token."""
    words = context.split(" ")
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    answer = " ".join(words[first : last + 1])
    start = len(" ".join([*words[:first], ""]))
    whole = windows(tokenizer, ["q"], [context], 512, 8)[0]
    expected = [
        span for span in whole[0]["spans"] if span[1] > start and -1 < span[0] < start + len(answer)
    ]
    parts = windows(tokenizer, ["q"], [context], 32, 8)[0]
    for read in (whole, parts):
        there = covered(read, start, start + len(answer))
        assert sorted(there) == sorted(set(expected))
        for window in read:
            spans = window["spans"]
            first, last = target(spans, there)
            if first:
                assert spans[first : last + 1] == expected
            else:
                assert not expected or not set(expected) <= set(spans)


def test_an_answer_may_end_with_what_no_token_stands_for(tokenizer: Any) -> None:
    data = rows(question=["q"], context=["river \u200b"], answer=["river \u200b"])
    (example,) = TASK.encode(data, tokenizer, [], 32).examples
    first, last = example["windows"][0]["labels"]
    assert example["windows"][0]["spans"][first : last + 1] == [(0, 5)]


def test_the_best_span_is_that_of_all_pairs() -> None:
    starts, ends = torch.randn(2, 3, 9)
    spans = torch.stack([torch.arange(27), torch.arange(1, 28)], -1).reshape(3, 9, 2)
    spans[:, :3], spans[:, -1] = -1, -1
    every = {
        (float(spans[w, i, 0]), float(spans[w, j, 1])): float(starts[w, i] + ends[w, j])
        for w in range(3)
        for i in range(3, 8)
        for j in range(i, min(8, i + 2))
    }
    first, end, chance = best_span(starts, ends, spans, 2)
    assert (first, end) == max(every, key=lambda span: every[span])
    total = starts.flatten().softmax(0)[:, None] * ends.flatten().softmax(0)
    assert chance == pytest.approx(
        max(every.values()) and float(torch.tensor(every[first, end]).exp())
        * float(total[0, 0]) / float((starts[0, 0] + ends[0, 0]).exp()),
        rel=1e-4,
    )  # fmt: skip


def test_no_answer_is_one_where_it_may_be() -> None:
    starts, ends = torch.zeros(2, 4), torch.zeros(2, 4)
    spans = torch.tensor([[[-1, -1], [0, 1], [1, 2], [2, 3]]] * 2)
    starts[:, 0] = ends[:, 0] = torch.tensor([3.0, 0.5])
    starts[1, 2] = 2.0
    assert best_span(starts, ends, spans, 3)[:2] == best_span(starts, ends, spans, 3, True)[:2]
    starts[1, 0] = 4.0  # now every window says that there is none
    assert best_span(starts, ends, spans, 3)[:2] == (1, 2)
    assert best_span(starts, ends, spans, 3, True)[:2] == (0, 0)


SQUAD = {"question": "Who?", "context": "Ada met Ada.", "answers": {}}


def test_squads_own_form(tmp_path: Path, tokenizer: Any) -> None:
    """Several right answers, the first of which is trained on where it is said to stand; none."""
    said = {"text": ["Ada", "met Ada"], "answer_start": [8, 4]}
    none = {**SQUAD, "answers": {"text": [], "answer_start": []}}
    file = tmp_path / "squad.jsonl"
    lines = [json.dumps(row) + "\n" for row in [{**SQUAD, "answers": said}] * 30 + [none]]
    file.write_text("".join(lines), "utf8")
    with pytest.raises(InputError, match=r"line 31: there is no answer; .*unanswerable=true"):
        load(str(file), TASK.columns, fault=TASK.fault)
    task = QuestionAnswering(unanswerable=True)
    splits = load(str(file), task.columns, fault=task.fault)
    found = [one for part in ("train", "validation", "test") for one in getattr(splits, part)]
    every = Dataset.from_list(sorted(found, key=lambda row: not row["answer"]))
    references = task.references(every, [])
    assert references[0] == ["Ada", "met Ada"]
    assert references[-1] == [""]
    first, last = (task.encode(every.select([i]), tokenizer, [], 32).examples[0] for i in (0, 30))
    start, end = first["windows"][0]["labels"]
    assert first["windows"][0]["spans"][start : end + 1] == [(8, 11)]
    assert last["windows"][0]["labels"] == [0, 0]
    assert METRICS["squad_f1"].value(["met Ada", ""], [references[0], references[-1]]) == 1.0


def test_a_context_without_a_token_has_no_answer(tokenizer: Any) -> None:
    data = rows(question=["who?"], context=["\u200b"])
    found = asked(TASK, tokenizer, data, 32)
    assert TASK.answers(found, data, [], tokenizer) == [""]


def test_the_loss_is_that_of_start_and_end(tokenizer: Any) -> None:
    """Whatever a batch is padded to, and however it is parted."""
    data = rows(
        question=["who?", "who was it?"],
        context=["Ada wrote it", "it was " * 20 + "Ada"],
        answer=["Ada", "Ada"],
    )
    encoded = TASK.encode_for_training(data, tokenizer, [], 24)
    batch = TASK.collate(encoded.examples, tokenizer)
    assert len(encoded.examples) == len(batch["rows"]) > 3
    model, expected = Oracle(), []
    for example in encoded.examples:
        (one,) = example["windows"]
        ids = torch.tensor(one["input_ids"])
        pairs = zip((model.start[ids], model.end[ids]), one["labels"], strict=True)
        expected += [float(F.cross_entropy(z[None], torch.tensor([at]))) for z, at in pairs]
    mean = sum(expected) / len(expected)
    assert float(TASK.loss(model, batch)[0]) == pytest.approx(mean, rel=1e-5)
    found = [example["windows"][0]["labels"] for example in encoded.examples]
    assert found.count([0, 0]) < len(found)


def test_many_windows_are_read_in_turn(tokenizer: Any) -> None:
    data = rows(question=["who?"], context=["it was " * 500 + "Ada"])
    encoded = TASK.encode(data, tokenizer, None, 24)
    model = Oracle()
    TASK.ask(model, TASK.collate(encoded.examples, tokenizer), tokenizer)
    assert len(model.sizes) > 1
    assert max(model.sizes) == 64


def test_a_long_question_leaves_room_for_the_context(tokenizer: Any) -> None:
    data = rows(question=["why " * 90], context=["because"], answer=["because"])
    encoded = TASK.encode(data, tokenizer, [], 32)
    assert encoded.truncated == 1
    (window,) = encoded.examples[0]["windows"]
    assert window["labels"][0] > 0
    assert window["length"] <= 32


@pytest.mark.parametrize(
    ("start", "expected"), [(None, 3), ("", 3), ("11", 11), (11.0, 11), (float("nan"), 3), (4, -1)]
)
def test_where_an_answer_stands(start: Any, expected: int) -> None:
    assert place("to Ada and Ada", "Ada", start) == expected


def test_an_answer_that_is_not_there_is_a_broken_row(tmp_path: Path) -> None:
    wrong = {"question": "q", "context": "Ada wrote", "answer": "Babbage"}
    lines = [json.dumps(row) + "\n" for row in [{**wrong, "answer": "Ada"}] * 30 + [wrong]]
    (file := tmp_path / "asked.jsonl").write_text("".join(lines), "utf8")
    options: dict[str, Any] = {"columns": TASK.columns, "fault": TASK.fault}
    with pytest.raises(InputError, match=r"asked.jsonl, line 31: the answer 'Babbage' is not in"):
        load(str(file), **options)
    assert "1 of 31 rows" in load(str(file), **options, skip_bad_rows=True).notes[0]


@pytest.mark.parametrize("options", [{"stride": -1}, {"longest": 0}, {"stride": "many"}])
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="question-answering: "):
        QuestionAnswering(**options)


def test_no_room_at_all(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="--max-length 6 leaves no room"):
        TASK.encode(rows(question=["q"], context=["c"]), tokenizer, None, 6)


# A run


def built() -> Any:
    """The module that builds questions for the benchmarks."""
    path = ROOT / "benchmarks" / "tasks" / "prepare_qa.py"
    spec = importlib.util.spec_from_file_location("prepare_qa", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    if not E2E.is_dir():
        pytest.skip("E2E is not beside the repository")
    data, out = tmp_path_factory.mktemp("e2e"), tmp_path_factory.mktemp("runs") / "e2e"
    sizes = {"train": 160, "validation": 24, "test": 24}
    for split, found in built().questions(E2E).items():
        lines = [json.dumps(row) for row in found[: sizes[split]]]
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    fields = {"model": "minilm", "data": str(data), "out": str(out), "max_steps": 16}
    fields |= {"task": "question-answering", "lr": 3e-3, "batch_size": 8, "max_length": 96}
    fields |= {"task_arg": {"stride": 32}, "eval_every": 4}
    fields |= {"dtype": "float32", "attention": "eager", "products": "exact"}
    return out, tune(parse(fields, "a test"), quiet=True)


def test_a_run_reports_and_evaluates_the_same(finished: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = finished
    assert metrics["metric"] == "squad_f1"
    assert metrics["test"]["n"] == 24
    again = evaluate(str(out), None, "test")
    assert again["value"] == metrics["test"]
    assert (
        again["metrics"]["squad_exact_match"] == metrics["metrics"]["squad_exact_match"]["adapted"]
    )


def test_a_run_learns(finished: tuple[Path, dict[str, Any]]) -> None:
    """So few steps find no answers yet; but the loss falls."""
    losses = [one["eval_loss"] for one in read_log(Run(finished[0]).log) if "eval_loss" in one]
    assert losses[-1] < losses[0] - 0.3


def test_predict_tells_where_the_answer_stands(
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a file, and the same from standard input."""
    row = {"question": "What food does Cotto serve?", "context": "Cotto serves English food."}
    (tmp_path / "new.jsonl").write_text(json.dumps(row) + "\n")
    (told,) = predict(str(finished[0]), str(tmp_path / "new.jsonl"))
    assert row["context"][told["start"] : told["end"]] == told["answer"]
    assert 0 < told["probability"] <= 1
    lines = io.BytesIO((json.dumps(row) + "\n").encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines))
    assert predict(str(finished[0]), "-") == [told]


def test_questions_are_answered_by_their_contexts() -> None:
    if not E2E.is_dir():
        pytest.skip("E2E is not beside the repository")
    found = built().questions(E2E)
    for row in found["test"][:100]:
        at = row["answer_start"]
        assert row["context"][at : at + len(row["answer"])] == row["answer"]
    assert found == built().questions(E2E)
