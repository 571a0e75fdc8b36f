"""The figures of a comparison, each held to what it is by definition."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.compare import drawing, energy
from trimtab.compare.pairing import minus, over_seeds
from trimtab.compare.verdict import judge, rival_of
from trimtab.core.errors import InputError
from trimtab.evaluate import forgetting
from trimtab.evaluate.metrics import METRICS, difference, interval
from trimtab.evaluate.transferability import logme


def test_one_seed_is_compared_as_a_run_reports_it() -> None:
    rng = np.random.default_rng(0)
    truth, a, b = (rng.choice(["x", "y", "z"], 60).tolist() for _ in range(3))
    for name in ("accuracy", "macro_f1"):
        metric = METRICS[name]
        assert over_seeds(metric, [a], truth, 3) == interval(metric, a, truth, seed=3)
        assert minus(metric, [a], [b], truth, 3) == difference(metric, a, b, truth, seed=3)


def test_several_seeds_are_their_mean() -> None:
    rng = np.random.default_rng(0)
    truth, a, b, c = (rng.choice(["x", "y"], 80).tolist() for _ in range(4))
    for name in ("accuracy", "macro_f1"):
        metric = METRICS[name]
        values = [metric.value(one, truth) for one in (a, b, c)]
        found = over_seeds(metric, [a, b], truth, 0)
        assert found.value == pytest.approx((values[0] + values[1]) / 2)
        assert found.low < found.value < found.high
        less = minus(metric, [a, b], [c], truth, 0)
        assert less.value == pytest.approx((values[0] + values[1]) / 2 - values[2])


def test_the_evidence_is_that_of_the_gaussian() -> None:
    """log N(y; 0, I/β + FFᵀ/α) at the best α and β: no other pair has more."""
    rng = np.random.default_rng(0)
    F, labels = rng.normal(size=(40, 6)), rng.integers(2, size=40)
    y = (labels == 1).astype(float)

    def evidence(alpha: float, beta: float, target: np.ndarray) -> float:
        covariance = np.eye(40) / beta + F @ F.T / alpha
        _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
        return -(log_det + target @ np.linalg.solve(covariance, target)) / 2 / 40

    grid = [float(x) for x in np.geomspace(1e-2, 1e4, 61)]
    best = [
        max(evidence(a, b, one) for a, b in itertools.product(grid, grid)) for one in (y, 1 - y)
    ]
    assert logme(F, labels) == pytest.approx(np.mean(best), abs=5e-3)


def test_features_that_tell_the_labels_score_higher() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=120)
    noise = rng.normal(size=(120, 16))
    telling = noise + 3 * np.eye(3)[labels] @ rng.normal(size=(3, 16))
    assert logme(telling, labels) > logme(noise, labels)


def test_counters_are_read_and_begin_again(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("900")
        (tmp_path / name / "max_energy_range_uj").write_text("1000")
    found = energy.counters(tmp_path)
    assert [one.path.parent.name for one in found] == ["intel-rapl:0", "intel-rapl:1"]
    meter = energy.Meter(found)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100")  # past the top: 200 on
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("950")
    assert meter.joules() == pytest.approx(250e-6)
    assert energy.Meter(energy.counters(tmp_path / "nothing")).joules() is None


def test_watts_and_carbon() -> None:
    assert energy.watts(65.0)[0] == 65.0
    assert "assumed" in energy.watts(None)[1]
    assert energy.carbon(3.6e6, 480.0) == 480.0  # one kWh


def test_the_same_vectors_agree_and_others_by_chance() -> None:
    vectors = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    turned = vectors @ torch.linalg.qr(torch.randn(8, 8))[0]
    assert forgetting.agreement(vectors, 3 * vectors) == 1.0
    assert forgetting.agreement(vectors, turned) == pytest.approx(1.0, abs=0.01)
    other = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    assert forgetting.agreement(vectors, other) == pytest.approx(5 / 200, abs=0.03)


def test_a_probe_of_ones_own(tmp_path: Path) -> None:
    assert len(set(forgetting.lines(None))) == 64
    path = tmp_path / "probe.txt"
    path.write_text("\n\n".join(f"Sentence {i}." for i in range(20)))
    assert len(forgetting.lines(str(path))) == 20
    path.write_text("One line.\n")
    with pytest.raises(InputError, match="has 1 different lines"):
        forgetting.lines(str(path))
    with pytest.raises(InputError, match="cannot be read as text"):
        forgetting.lines(str(tmp_path / "absent.txt"))


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (5.0, 0.7), (9.0, 0.9)]
    assert drawing.front(points, higher=True) == [(1.0, 0.5), (2.0, 0.7), (9.0, 0.9)]
    assert drawing.front(points, higher=False) == [(1.0, 0.5), (2.0, 0.4)]


def test_words_of_a_picture_cover_nothing() -> None:
    dots = [drawing.Dot(100.0 + i, 0.8 + 0.001 * i, f"method {i}", "#000", "") for i in range(7)]
    x, y = drawing.logarithmic([dot.x for dot in dots]), drawing.linear([0.0, 1.0])
    made = drawing.picture("p", "", "", ("x", "y"), (x, y), dots)
    boxes = [
        drawing._box((w.x, w.y, 1 if w.anchor == "start" else -1), drawing.LETTER * len(w.text))
        for w in made.words
    ]
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _row(method: str, low: float | None, kept: int, kind: str = "trained") -> dict[str, Any]:
    against = None
    if low is not None:
        shows = "better" if low > 0 else "worse" if low + 0.02 < 0 else "no difference shown"
        against = {"value": low + 0.01, "low": low, "high": low + 0.02, "n": 50, "shows": shows}
    test = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 50}
    empty = dict.fromkeys(("milliseconds", "forgetting"))
    return {"model": "m", "method": method, "kind": kind, "test": test, "against": against,
            "bytes": kept, "seconds": 1.0, "validation": None, **empty}  # fmt: skip


def _judged(*rows: dict[str, Any], margin: float = 0.01) -> dict[str, Any]:
    rival = rival_of(rows, 0, higher=True)
    for row in rows:  # as if the rival were the reference's own distance away
        row["against_rival"] = row.get("to_rival")
    found = {"rows": list(rows), "reference": 0, "rival": rival, "margin": margin}
    found |= {"metric": "accuracy", "higher_is_better": True, "request": {"models": ["m"]}}
    return judge(found)


def test_the_smallest_that_is_not_inferior_is_chosen() -> None:
    full, small = _row("full", None, 1000), _row("ia3", -0.005, 10)
    larger, bad = _row("lora", -0.0005, 100), _row("head", -0.2, 1)
    found = _judged(full, small, larger, bad)
    assert (found["choice"], found["non_inferior"]) == (1, [1, 2])
    assert "Choose ia3" in found["text"]
    assert "100 times less" in found["text"]
    assert "Each of the 3 that were tried" in found["text"]
    assert "up to 8% of such" in found["text"]
    assert _judged(full, small, larger, bad, margin=0.001)["choice"] == 2
    assert _judged(full, bad)["choice"] == 0
    assert "Keep full: no cheaper way" in _judged(full, bad)["text"]


def test_what_beats_full_is_what_others_are_held_to() -> None:
    """A method as good as a full fine-tuning that failed is no choice."""
    full, best = _row("full", None, 1000), _row("ia3", 0.3, 50)
    poor, less = _row("head", -0.001, 1), _row("lora", 0.1, 100)
    full["validation"], best["validation"], less["validation"] = 0.1, 0.9, 0.8
    for row, low in ((full, -0.33), (poor, -0.32), (less, -0.21)):
        row["to_rival"] = {"value": low + 0.01, "low": low, "high": low + 0.02, "n": 50}
        row["to_rival"]["shows"] = "worse"
    found = _judged(full, best, poor, less)
    assert found["choice"] == 1
    assert "Better than full beyond its interval: ia3" in found["text"]
    assert "Of these validation prefers ia3" in found["text"]
    assert "Choose ia3: no cheaper way" in found["text"]
