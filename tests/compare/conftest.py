"""A realistic report to render: a six-layer BERT with 70 sites."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trimtab.compare.report import Change, Report, Row, summary_sentence
from trimtab.evaluate.bootstrap import Interval

KINDS = {
    "attention.self.query": 6144,
    "attention.self.key": 6144,
    "attention.self.value": 6144,
    "attention.output.dense": 6144,
    "intermediate.dense": 15360,
    "output.dense": 15360,
    "attention.self.query.bias": 384,
    "attention.self.value.bias": 384,
    "intermediate.dense.bias": 1536,
    "attention.output.LayerNorm": 768,
    "output.LayerNorm": 768,
}
OUTSIDE = {"embeddings.word": 12000, "pooler.dense": 6144, "classifier": 4620, "bias": 12}

HOSTILE = "</script><script>alert(1)</script><img src=https://evil.example onerror=alert(2)>&amp;"


def _rows() -> list[Row]:
    return [
        Row("base", None, Interval(0.073, 0.058, 0.089, 1066), 0, None, None,
            Interval(0.732, 0.703, 0.76, 1066)),
        Row("head only", Interval(0.65, 0.62, 0.68, 1000), Interval(0.644, 0.615, 0.672, 1066),
            4620, 11.3, 19_000, Interval(0.01, -0.004, 0.024, 1066)),
        Row("LoRA, rank 8", Interval(0.81, 0.79, 0.83, 1000), Interval(0.805, 0.781, 0.828, 1066),
            338_690, 83.2, 1_363_000),
    ]  # fmt: skip


def _sites() -> list[tuple[str, int]]:
    blocks = [(f"bert.encoder.layer.{b}.{kind}", n) for b in range(6) for kind, n in KINDS.items()]
    return [*blocks, *OUTSIDE.items()]


def _changes(n: int, *, gained: bool) -> list[Change]:
    wrong, right = ("email", "json") if gained else ("json", "email")
    return [Change(f"Example {i} of a docstring.", "json", wrong, right) for i in range(n)]


@pytest.fixture
def report() -> Report:
    rng = np.random.default_rng(0)
    rows = _rows()
    losses = [(s, float(2.5 * np.exp(-s / 60) + 0.4 + rng.normal(0, 0.1))) for s in range(1, 268)]
    summary = summary_sentence(
        method="LoRA", model="minilm", metric="accuracy", rows=rows, total=23_052_302
    )
    return Report(
        title="Docstrings with LoRA",
        task="text-classification",
        metric="accuracy",
        method="LoRA",
        model="minilm",
        summary=summary,
        rows=rows,
        losses=losses,
        evaluations=[(s, 2.4 / s + 0.5, 0.9 - 9 / s) for s in (54, 108, 161, 215, 267)],
        sites=_sites(),
        reference="head only",
        gained=_changes(20, gained=True),
        lost=_changes(12, gained=False),
        gained_total=231,
        lost_total=12,
        facts={"seed": "0", "hardware": "two cores, no accelerator", "torch": "2.13.0"},
        notes=["3 rows are longer than 128 tokens and were cut."],
        total=23_052_302,
    )


@pytest.fixture
def bare(report: Report) -> Report:
    """A report in which every series is empty."""
    empty = ("rows", "losses", "evaluations", "sites", "gained", "lost", "notes")
    nothing = dict.fromkeys(empty, ()) | {"facts": {}, "gained_total": 0, "lost_total": 0}
    return dataclasses.replace(report, **nothing)


@pytest.fixture
def hostile(report: Report) -> Report:
    """A report in which every text tries to become markup."""
    texts = ("title", "task", "metric", "method", "model", "summary", "reference")
    name = HOSTILE.replace(".", "·")  # a module's name may hold anything but a dot
    return dataclasses.replace(
        report,
        **dict.fromkeys(texts, HOSTILE),
        rows=[dataclasses.replace(row, name=HOSTILE) for row in report.rows],
        sites=[(name, 5), (f"layers.0.{name}", 7)],
        gained=[Change(HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
        lost=[],
        facts={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )
