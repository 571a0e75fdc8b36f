"""`trimtab plan`, `tune --plan` and `--method auto` as a user meets them, on the real MiniLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab import LoRA
from trimtab.core.errors import InputError
from trimtab.plan import candidates, read, write
from trimtab.plan.budget import parse as amount
from trimtab.tune import planning
from trimtab.tune.config import Config, parse
from trimtab.tune.folder import Run
from trimtab.tune.planning import Request, propose
from trimtab.tune.revising import effective_rank, revise
from trimtab.tune.run import tune

SHORT = {
    "max_steps": 2,
    "batch_size": 8,
    "max_length": 16,
    "dtype": "float32",
    "attention": "eager",
}


@pytest.fixture(scope="session")
def plan(made: tuple[Path, Any]) -> Path:
    path, outcome = made
    assert outcome.code == 0, outcome.err
    return path


@pytest.fixture(scope="session")
def tuned(plan: Path, reviews: Path, real: Callable[..., Any]) -> Path:
    """A run by a plan that was edited, in a process of its own."""
    out = plan.parent / "run"
    held = read(plan)
    edited = [replace(e, rank=3) if e == held.taken[0] else e for e in held.entries]
    write(replace(held, entries=tuple(edited)), out.with_suffix(".yaml"))
    flags = [x for k, v in SHORT.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    given = ["--model", "minilm", "--data", str(reviews), "--out", str(out)]
    outcome = real("tune", "--plan", str(out.with_suffix(".yaml")), *given, *flags, "--json")
    assert outcome.code == 0, outcome.err
    return out


def configured(reviews: Path, out: Path, **more: Any) -> Config:
    return parse({"model": "minilm", "data": str(reviews), "out": str(out), **SHORT, **more}, "")


def test_a_plan_keeps_its_budget_and_says_where_it_comes_from(
    plan: Path, made: tuple[Path, Any], reviews: Path
) -> None:
    found = read(plan)
    spent = sum(entry.cost for entry in found.taken)
    assert 18_000 < spent <= 20_000
    assert found.parameters == spent
    assert (found.budget, found.estimator, found.examples) == ("20k", "nuclear", 32)
    assert found.data == str(reviews)
    assert found.seconds > 0
    assert all(1 <= entry.rank <= 4 for entry in found.taken)
    assert "lora at" in made[1].out
    assert str(plan) in made[1].out


def test_a_run_trains_what_the_plan_says(tuned: Path, plan: Path) -> None:
    metrics = json.loads((tuned / "metrics.json").read_text())
    held = read(tuned.with_suffix(".yaml"))
    first = held.taken[0]
    whole = sum(entry.rank * 768 for entry in held.taken if "intermediate" not in entry.site)
    assert first.rank == 3
    config = Run(tuned).config()
    assert config.build_plan() == held
    assert any("plan: lora at" in note for note in metrics["notes"])
    from trimtab.store.describe import describe

    sites = {s.name: s for s in describe(tuned).sites if s.method == "lora"}
    assert {name: s.shapes["A"][0] for name, s in sites.items()} == {
        entry.site: entry.rank for entry in held.taken
    }
    assert sum(s.parameters for s in sites.values()) >= whole


def test_a_run_is_revised(tuned: Path) -> None:
    before = read(tuned.with_suffix(".yaml"))
    after = revise(str(tuned), examples=16, most=4)
    ranks = {entry.site: entry.rank for entry in after.taken}
    metrics = json.loads((tuned / "metrics.json").read_text())
    assert after.parameters <= metrics["trainable"] - (2 * 384 + 2)
    assert {entry.site for entry in after.entries} == {entry.site for entry in before.entries}
    assert "were not used" in after.notes[0]
    trained = [entry for entry in after.entries if entry.spent]
    assert {entry.site for entry in trained} == {entry.site for entry in before.taken}
    assert ranks
    with pytest.raises(InputError, match="holds no run"):
        revise(str(tuned.parent))


def test_effective_rank() -> None:
    import torch

    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == 3
    assert effective_rank(torch.tensor([1.0, 0.0, 0.0])) == 1
    assert effective_rank(torch.zeros(3)) == 0


def test_auto_plans_then_tunes_and_goes_on(reviews: Path, tmp_path: Path) -> None:
    config = configured(reviews, tmp_path / "run", method="auto", budget="10k", head_only=False)
    metrics = tune(config, quiet=True)
    saved = Run(tmp_path / "run").config()
    held = saved.build_plan()
    assert (saved.method, saved.budget) == ("lora", "10k")
    head = 2 * 384 + 2
    assert metrics["trainable"] - head == held.parameters <= 10_000
    again = tune(saved, resume=True, quiet=True)
    assert again == metrics


@pytest.mark.parametrize(
    ("methods", "budget", "kinds"),
    [
        (("bitfit",), "3k", {"bitfit"}),
        (("ln",), "3k", {"ln"}),
        (("lora", "bitfit"), "8k", {"lora", "bitfit"}),
        (("layers",), "8.5%", {"layers"}),
        (("fish",), "10k", {"fish"}),
        (("shira",), "10k", {"shira"}),
        (("dora",), "10k", {"dora"}),
    ],
)
def test_what_is_divided(
    methods: tuple[str, ...], budget: str, kinds: set[str], reviews: Path, tmp_path: Path
) -> None:
    config = configured(reviews, tmp_path, method=methods[0])
    found = propose(config, Request(amount(budget), methods, examples=16, most=4))
    assert {entry.method for entry in found.taken} == kinds
    limit = amount(budget).parameters(found.of, 4, 0)
    assert 0.7 * limit < found.parameters <= limit


def test_a_budget_of_seconds_is_kept_by_the_clock(reviews: Path, tmp_path: Path) -> None:
    """Not the time itself, which this machine shares, but that less time is fewer ranks."""
    config = configured(reviews, tmp_path)
    with pytest.raises(InputError, match="alone take"):
        propose(config, Request(amount("0.001s"), examples=8, most=2))
    found = propose(config, Request(amount("1h"), examples=8, most=2))
    assert all(entry.rank == 2 for entry in found.entries)


def test_steps_are_timed_as_the_run_makes_them(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gradient of the base's weights, which the run has not either."""
    asked: list[set[str]] = []

    def timed(calls: dict[str, Any], rounds: int) -> dict[str, float]:
        named = ground.session.model.named_parameters()
        asked.append({name for name, one in named if one.requires_grad})
        return dict.fromkeys(calls, 1.0)

    ground = planning.prepare(configured(reviews, tmp_path), 16)
    monkeypatch.setattr(planning.hardware, "measure", timed)
    planning._Clock(ground, candidates(ground.session.model, [LoRA()], None, 2))
    bare, low, high = asked
    assert bare == {"classifier.weight", "classifier.bias"}
    assert all("lora" in name or "classifier" in name for name in low | high)


def test_the_scale_of_an_update_is_what_was_asked_for(reviews: Path, tmp_path: Path) -> None:
    """Here α / r = 1, and 2 by LoRA's defaults; also after a revision."""
    given = {"method_arg": {"rank": 4, "alpha": 4, "dropout": 0.1}}
    config = configured(reviews, tmp_path / "plan", **given)
    found = propose(config, Request(amount("10k"), examples=16, most=4))
    built = [entry.build() for entry in found.taken]
    assert {(one.alpha / one.rank, one.dropout) for one in built} == {(1.0, 0.1)}
    run = configured(reviews, tmp_path / "run", target="query", head_only=False, **given)
    tune(run, quiet=True)
    after = [entry.build() for entry in revise(run.out, examples=16, most=4).taken]
    assert {(one.alpha / one.rank, one.dropout) for one in after} == {(1.0, 0.1)}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--budget", "lots"], "is no budget"),
        (["--budget", "1k", "--estimator", "hope"], "no estimator is called 'hope'"),
        (["--budget", "1k", "--methods", "lroa"], "no method is called 'lroa'; nearest: "),
        (["--budget", "10"], "the cheapest site takes"),
        ([], "a plan needs --budget"),
        (["--from", "run", "--methods", "lora"], "leave out --methods"),
        (["--from", "run", "--search"], "leave out --search"),
        (["--budget", "1k", "--trials", "3"], "--trials is for --search"),
        (["--budget", "1k", "--search", "--workers", "3"], "--workers is for --engine ray"),
        (
            ["--budget", "1k", "--methods", "lora,bitfit", "--method-arg", "rank=4"],
            "--method-arg is of one method",
        ),
    ],
)
def test_mistakes(
    flags: list[str],
    told: str,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from trimtab.cli import main

    out = tmp_path / "plan.yaml"
    monkeypatch.setattr("sys.argv", ["trimtab", *asked, *flags, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not out.exists()
