"""Successive halving: who goes on, what is kept, and that nothing finished is run again."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.plan.search import Point, Trial, by_optuna, points, slices
from trimtab.tune.config import parse as configured
from trimtab.tune.planning import Request, parse
from trimtab.tune.searching import _same_search, search

RATES = {"lora": 1e-3, "bitfit": 2e-3}
RUNGS = (10, 30, 90)


class Landscape:
    """A metric with a best learning rate for each method; more data tells it better."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls: list[tuple[Point, int]] = []
        self.stop = stop

    def __call__(self, point: Point, rows: int) -> float:
        if self.stop is not None and len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append((point, rows))
        off = math.log10(point.lr / 2e-3) ** 2 + (point.method == "bitfit")
        return rows / 100 - off


def found(folder: Path, train: Landscape, count: int = 8) -> list[Trial]:
    return by_optuna(train, RATES, RUNGS, count, folder, 0, lambda told: None)


def test_slices_grow_by_the_same_factor() -> None:
    assert slices(1000, 100) == (111, 333, 1000)
    assert slices(50, 100) == (50,)


def test_few_go_on_and_the_best_is_found(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    train = Landscape()
    trials = found(tmp_path, train)
    assert len(trials) == 8
    first, last = (sum(rows == one for _, rows in train.calls) for one in (RUNGS[0], RUNGS[-1]))
    assert first == 8
    assert last < 8
    assert {point.method for point, _ in train.calls[:6]} == {"lora", "bitfit"}
    assert trials[0].point.method == "lora"
    assert len(trials[0].scores) == len(RUNGS)


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    stopped, after, whole = Landscape(stop=9), Landscape(), Landscape()
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path / "a", stopped)
    trials = found(tmp_path / "a", after)
    found(tmp_path / "b", whole)
    assert len(trials) == 8
    assert len(after.calls) < len(whole.calls)
    finished = set(stopped.calls) - {stopped.calls[-1]}
    again = [call for call in after.calls if call in finished]
    assert len({point for point, _ in again}) <= 1, "only the trial that was running"
    over = Landscape()
    assert found(tmp_path / "a", over) == trials
    assert over.calls == []


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    found(tmp_path, Landscape(), 2)
    with pytest.raises(InputError, match="search of other methods"):
        by_optuna(Landscape(), {"lora": 1e-3}, RUNGS, 2, tmp_path, 0, lambda told: None)


def test_points_for_engines_that_try_several_at_once() -> None:
    drawn = points(RATES, 6, 0)
    assert drawn == points(RATES, 6, 0)
    assert [one.lr for one in drawn[:2]] == [1e-3, 2e-3]
    assert [one.method for one in drawn] == ["lora", "bitfit"] * 3
    assert len({one.lr for one in drawn}) == 6


RAY = """
from pathlib import Path
from test_plan_search import RATES, RUNGS, Landscape
from trimtab.plan.ray_search import by_ray
said = []
if __name__ == "__main__":
    trials = by_ray(Landscape(), RATES, RUNGS, 4, Path({folder!r}), 0, said.append, 2)
    assert len(trials) == 4 == len(said), said
    assert trials[0].point.method == "lora" and len(trials[0].scores) == 3, trials
    assert any(len(trial.scores) < 3 for trial in trials), trials
"""


def test_the_same_search_on_two_workers_of_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'trimtab[ray]'")
    script = RAY.format(folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},  # for the workers, too
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_runs_are_searched_and_read_again(reviews: Path, tmp_path: Path) -> None:
    """On the real model: a run for each slice, a plan with the learning rate that came out best."""
    pytest.importorskip("optuna")
    from trimtab.tune.config import parse as configured

    values = {"max_steps": 1, "batch_size": 8, "max_length": 16, "dtype": "float32"}
    values |= {"attention": "eager", "head_only": False, "products": "exact", "replicas": 1}
    config = configured({"model": "minilm", "data": str(reviews), "out": "x", **values}, "")
    request = Request(parse("10k"), ("lora",), examples=8, most=2)
    asked = {"folder": tmp_path / "search", "trials": 1, "smallest": 24}
    plan = search(config, request, **asked)
    assert plan.lr == pytest.approx(1e-3)
    runs = sorted(path.name for path in (tmp_path / "search").glob("lora-*"))
    assert len(runs) == 1 + (64 // 3 >= 24)
    kept = {run: (tmp_path / "search" / run / "metrics.json").stat().st_mtime_ns for run in runs}
    again = search(config, request, **asked)
    assert again.lr == plan.lr
    assert [(e.site, e.rank) for e in again.taken] == [(e.site, e.rank) for e in plan.taken]
    for run, at in kept.items():
        assert (tmp_path / "search" / run / "metrics.json").stat().st_mtime_ns == at


def test_a_search_under_another_budget_is_refused(tmp_path: Path) -> None:
    config = configured({"model": "minilm", "data": "rows.csv", "out": "plan"}, "a test")
    folder = tmp_path / "search"
    _same_search(folder, config, Request(parse("1%")))
    _same_search(folder, config, Request(parse("1%")))
    with pytest.raises(InputError, match="a search with budget 1%, and this one has 2%"):
        _same_search(folder, config, Request(parse("2%")))
