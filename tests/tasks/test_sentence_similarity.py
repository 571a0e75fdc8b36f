"""Vectors of texts: pooling, the losses written out, who is a negative; runs on BANKING77."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from torch.nn import functional as F

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import models
from trimtab.tasks.sentence_similarity import (
    SentenceSimilarity,
    contrastive,
    embed,
    in_order,
    label_ranks,
    pair_ranks,
    partners,
)
from trimtab.tune.config import parse
from trimtab.tune.run import tune

BANKING = Path(__file__).parents[3] / "shared" / "data" / "banking77"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.load_tokenizer("minilm")


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Any:
    model, fresh = SentenceSimilarity().model("minilm", [], tokenizer, torch.float32, False)
    assert fresh == []
    return model.eval().requires_grad_(False)


def vectors(n: int, width: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(n, width), dim=-1)


def different(n: int) -> torch.Tensor:
    return torch.arange(n)[:, None].repeat(1, 2)


def test_the_contrastive_loss_written_out() -> None:
    a, p, τ = vectors(6), vectors(6), 0.1
    labels = torch.tensor([[0, 9], [1, 8], [0, 7], [2, 8], [3, 5], [4, 6]])  # 0 with 2, 1 with 3
    losses = []
    for i in range(6):
        near = [
            math.exp(float(a[i] @ p[j]) / τ)
            for j in range(6)
            if i == j or {i, j} not in ({0, 2}, {1, 3})
        ]
        losses.append(-math.log(math.exp(float(a[i] @ p[i]) / τ) / sum(near)))
    found = contrastive(a, p, labels, τ)
    assert float(found) == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_where_all_share_a_label_there_is_nothing_to_learn() -> None:
    a = vectors(4).requires_grad_()
    loss = contrastive(a, vectors(4), torch.zeros(4, 2, dtype=torch.long), 0.05)
    loss.backward()
    assert float(loss.detach()) == 0
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros(4, 5))


def test_the_loss_of_scores_written_out() -> None:
    a, p, scores, τ = vectors(5), vectors(5), torch.tensor([1.0, 3.0, 3.0, 0.0, 5.0]), 0.2
    near = (a * p).sum(-1) / τ
    total = sum(
        math.exp(float(near[j] - near[i]))
        for i in range(5)
        for j in range(5)
        if scores[i] > scores[j]
    )
    assert float(in_order(a, p, scores, τ)) == pytest.approx(math.log(1 + total), rel=1e-5)
    assert float(in_order(a, p, torch.ones(5), τ)) == 0


def test_padding_is_no_part_of_a_mean(encoder: Any, tokenizer: Any) -> None:
    task = SentenceSimilarity(kind="label")
    data = Dataset.from_dict({"text": ["a card", "a very long story of how my card was lost"]})
    encoded = task.encode(data, tokenizer, None, 64)
    together = task.ask(encoder, task.collate(encoded.examples, tokenizer), tokenizer)
    for example, vector in zip(encoded.examples, together, strict=True):
        (alone,) = task.ask(encoder, task.collate([example], tokenizer), tokenizer)
        np.testing.assert_allclose(vector, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, rtol=1e-5)


def test_the_mean_is_that_of_the_states(encoder: Any, tokenizer: Any) -> None:
    batch = dict(tokenizer(["one card", "two"], return_tensors="pt", padding=True))
    states = encoder(**batch).last_hidden_state
    means = torch.stack([states[0].mean(0), states[1, :3].mean(0)])
    torch.testing.assert_close(embed(encoder, batch), F.normalize(means, dim=-1))


def test_partners_share_a_label() -> None:
    labels = ["a", "b", "a", "c", "b", "a"]
    found = partners(labels)
    assert [labels[i] for i in found] == labels
    assert [i for i, other in enumerate(found) if i == other] == [3]
    assert sorted(found) == list(range(6))
    assert found == partners(labels)


def test_no_two_of_a_label() -> None:
    with pytest.raises(InputError, match="no label occurs twice in 2 rows"):
        partners(["a", "b"])


def test_the_rank_of_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.tasks.sentence_similarity._AT_ONCE", 2)
    points, labels = vectors(7).numpy(), list("abacbad")
    for i, found in enumerate(label_ranks(points, labels)):
        nearest = sorted((j for j in range(7) if j != i), key=lambda j: -points[i] @ points[j])
        right = [rank for rank, j in enumerate(nearest, start=1) if labels[j] == labels[i]]
        assert found == right[:1]


def test_the_rank_of_a_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text is ranked once, and another positive of the same anchor is no wrong answer."""
    monkeypatch.setattr("trimtab.tasks.sentence_similarity._AT_ONCE", 2)
    anchors, positives = list("abacd"), list("xyzyw")
    points = vectors(10).reshape(5, 2, -1).numpy()
    points[3, 1] = points[1, 1]
    right = {"a": "xz", "b": "y", "c": "y", "d": "w"}
    texts = {text: points[positives.index(text), 1] for text in "xyzw"}
    expected = [
        1
        + sum(
            points[i, 0] @ texts[text] > points[i, 0] @ texts[own]
            for text in texts
            if text not in right[anchor]
        )
        for i, (anchor, own) in enumerate(zip(anchors, positives, strict=True))
    ]
    assert pair_ranks(points, anchors, positives) == expected


def test_pairs_that_share_a_text_are_no_negatives(tokenizer: Any) -> None:
    data = Dataset.from_dict({"anchor": ["a", "b", "a"], "positive": ["x", "y", "z"]})
    task = SentenceSimilarity()
    batch = task.collate(task.encode(data, tokenizer, [], 16).examples, tokenizer)
    assert batch["labels"].tolist() == [[0, 0], [1, 1], [0, 2]]
    assert len(batch["input_ids"]) == 6


def test_scores_are_answered_by_similarities(tokenizer: Any) -> None:
    data = Dataset.from_dict({"anchor": ["a"], "positive": ["b"], "score": [4.0]})
    task = SentenceSimilarity(kind="score")
    pair = vectors(2).numpy()[None]
    assert task.answers(pair, data, [], tokenizer) == [
        pytest.approx(float(pair[0, 0] @ pair[0, 1]))
    ]
    assert task.references(data, []) == [4.0]
    (told,) = task.told(pair, data, [], tokenizer)
    assert set(told) == {"anchor", "positive", "similarity"}


@pytest.mark.parametrize("options", [{"kind": "texts"}, {"temperature": 0}, {"temperature": "x"}])
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="sentence-similarity: "):
        SentenceSimilarity(**options)


# Runs


def settings(data: Path, out: Path, kind: str) -> Any:
    fields = {"model": "minilm", "data": str(data), "out": str(out), "max_steps": 12}
    fields |= {"task": "sentence-similarity", "task_arg": {"kind": kind}, "batch_size": 16}
    fields |= {"dtype": "float32", "attention": "eager", "products": "exact"}
    return parse({**fields, "lr": 5e-4, "max_length": 32, "eval_every": 12}, "a test")


def texts() -> list[tuple[str, str]]:
    """Of twelve intents that are easily confused."""
    if not BANKING.is_dir():
        pytest.skip("BANKING77 is not beside the repository")
    with (BANKING / "train.csv").open(encoding="utf8", newline="") as file:
        found = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    chosen = [label for label in sorted({label for _, label in found}) if "card" in label][:12]
    return [(text, label) for text, label in found if label in chosen][::4]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    found, folder = texts(), tmp_path_factory.mktemp("banking")
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *found])
    out = folder / "run"
    return out, tune(settings(folder / "texts.csv", out, "label"), quiet=True)


def test_a_run_reports_and_evaluates_the_same(finished: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = finished
    assert metrics["metric"] == "hit_rate_at_1"
    again = evaluate(str(out), None, "test")
    assert again["value"] == metrics["test"]
    assert again["base"] == metrics["baselines"]["base"]


def test_a_run_learns(finished: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = finished
    both = [metrics[split]["value"] for split in ("validation", "test")]
    assert min(both) > 0.5
    assert metrics["test"]["value"] >= metrics["baselines"]["base"]["value"]


def test_predict_gives_vectors(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.csv").write_text("text\nwhere is my card\n")
    (told,) = predict(str(finished[0]), str(tmp_path / "new.csv"))
    assert np.linalg.norm(told["embedding"]) == pytest.approx(1, abs=1e-4)
    lines = io.BytesIO(b"where is my card\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines))
    assert predict(str(finished[0]), "-") == [told]


@pytest.mark.parametrize("kind", ["pair", "score"])
def test_runs_on_pairs(kind: str, tmp_path: Path) -> None:
    """Pairs of texts of an intent; scored, pairs of one intent above those of two."""
    found = texts()
    pairs = [(*found[i], *found[i + 1 + i // 2 % 2 * 40]) for i in range(0, len(found) - 42, 2)]
    rows = [
        {"sentence1": a, "sentence2": b, "score": 5 * (x == y)}
        for a, x, b, y in pairs
        if kind == "score" or x == y
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    metrics = tune(settings(tmp_path / "pairs.jsonl", tmp_path / "run", kind), quiet=True)
    assert metrics["metric"] == ("spearman" if kind == "score" else "recall_at_1")
    again = evaluate(str(tmp_path / "run"), None, "test")
    assert again["value"] == metrics["test"]
    (tmp_path / "new.jsonl").write_text(json.dumps(rows[0]))
    (told,) = predict(str(tmp_path / "run"), str(tmp_path / "new.jsonl"))
    assert -1 <= told["similarity"] <= 1


def test_spearman_is_of_the_similarities() -> None:
    from trimtab.evaluate.metrics import METRICS

    near, scores = [0.1, 0.5, 0.3, 0.9], [0.0, 2.0, 3.0, 5.0]
    assert METRICS["spearman"].value(near, scores) == pytest.approx(spearmanr(near, scores)[0])
