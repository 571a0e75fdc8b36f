"""docs/plan.md's tables, from results/auto.json: what there is, better or not."""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from trimtab.evaluate.metrics import METRICS, difference

PAGE = Path(__file__).parent.parent / "docs" / "plan.md"
RESULTS = Path(__file__).parent / "results" / "auto.json"
BEGIN, END = "<!-- written by benchmarks/auto.py -->", "<!-- until here -->"
TASKS = ("rotten_tomatoes", "banking77", "snips_intents", "subjectivity", "wnut17")
BUDGETS, SEEDS = ("0.2%", "0.5%"), (0, 1, 2)
AGAINST = {"even": "all linear maps", "q, v": "q, v"}
OTHERS = ("gradient", "held-out", "importance", "fisher", "eva")


def packed(answers: list[Any]) -> str:
    """Answers to hundreds of examples, on a line of their own."""
    return base64.b64encode(zlib.compress(json.dumps(answers).encode(), 9)).decode()


def unpacked(text: str) -> list[Any]:
    return json.loads(zlib.decompress(base64.b64decode(text)))


def page() -> None:
    """Put the tables between the two marks of the page."""
    text = PAGE.read_text(encoding="utf8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}", encoding="utf8")


def tables() -> str:
    if not RESULTS.exists():
        return "Nothing was measured yet: `make auto`."
    found = json.loads(RESULTS.read_text(encoding="utf8"))
    runs = found["runs"]
    rows = [("task", "budget", "seeds", "auto", *AGAINST.values(), *_heads()), ("---",) * 8]
    for task, budget in itertools.product(TASKS, BUDGETS):
        rows.append(_row(found, task, budget))
    settings = found["settings"]
    begun, pairs = sum(one[2] != "–" for one in rows[2:]), len(TASKS) * len(BUDGETS)
    whole = pairs * len(SEEDS) * 3 + len(TASKS) * len(OTHERS)
    about = (
        f"Coverage: {len(runs)} of {whole} runs; {begun} of {pairs} comparisons have at least one "
        f"seed of {len(SEEDS)}. MiniLM, {settings['steps']} steps of {settings['batch']} examples "
        f"out of {settings['trained']}, at most {settings['length']} tokens; up to "
        f"{settings['tested']} test examples. LoRA at its own learning rate, every run from the "
        f"same head. A plan is measured on {settings['measured']} examples: {_seconds(runs)}."
    )
    return "\n\n".join((about, _lines(rows), _verdict(found), _estimators(found)))


def _heads() -> tuple[str, ...]:
    return tuple(f"auto − {name}" for name in AGAINST.values())


def _get(found: dict[str, Any], task: str, budget: str, arm: str, seed: int) -> Any:
    return found["runs"].get(f"{task} | {budget} | {arm} | {seed}")


def _seeds(found: dict[str, Any], task: str, budget: str, arms: tuple[str, ...]) -> list[int]:
    """Those of which every contestant has a run."""
    return [s for s in SEEDS if all(_get(found, task, budget, arm, s) for arm in arms)]


def _row(found: dict[str, Any], task: str, budget: str) -> tuple[str, ...]:
    arms = ("auto", *AGAINST)
    seeds = _seeds(found, task, budget, arms)
    name = f"{task}, {found.get('metrics', {}).get(task, '–')}"
    if not seeds:
        return (name, budget, "–", *("–",) * 5)
    means = [
        f"{fmean(_get(found, task, budget, arm, seed)['value'] for seed in seeds):.3f}"
        for arm in arms
    ]
    gaps = [_told(_gap(found, task, budget, "auto", other, seeds)) for other in AGAINST]
    return (name, budget, str(len(seeds)), *means, *gaps)


Gap = tuple[float, float, float]


def _gap(
    found: dict[str, Any], task: str, budget: str, arm: str, other: str, seeds: list[int]
) -> Gap:
    """The mean over seeds of paired differences, with a 95 % interval: the test examples are
    drawn again, the same for both and for all seeds."""
    metric = METRICS[found["metrics"][task]]
    references = unpacked(found["references"][task])
    pairs = [
        [unpacked(_get(found, task, budget, one, s)["answers"]) for one in (arm, other)]
        for s in seeds
    ]
    each = [difference(metric, one, two, references, seed=0) for one, two in pairs]
    middle = fmean(one.value for one in each)
    if metric.each is None:  # of a metric that is no mean: the widest of the seeds' intervals
        reach = max(max(one.high - one.value, one.value - one.low) for one in each)
        return middle, middle - reach, middle + reach
    scores = np.array(
        [
            [
                metric.each(a, r) - metric.each(b, r)
                for a, b, r in zip(*pair, references, strict=True)
            ]
            for pair in pairs
        ]
    ).mean(0)
    draws = np.random.default_rng(0).integers(0, len(scores), (2000, len(scores)))
    low, high = np.percentile(scores[draws].mean(1), (2.5, 97.5))
    return middle, float(low), float(high)


def _told(gap: Gap) -> str:
    return f"{gap[0]:+.3f} [{gap[1]:+.3f}, {gap[2]:+.3f}]"


def _verdict(found: dict[str, Any]) -> str:
    """Wins and losses beyond the interval, counted."""
    said = []
    for other, name in AGAINST.items():
        gaps = [
            _gap(found, task, budget, "auto", other, seeds)
            for task, budget in itertools.product(TASKS, BUDGETS)
            if (seeds := _seeds(found, task, budget, ("auto", *AGAINST)))
        ]
        if gaps:
            won = sum(low > 0 for _, low, _ in gaps)
            lost = sum(high < 0 for _, _, high in gaps)
            said.append(
                f"Against {name}: {won} won, {lost} lost, {len(gaps) - won - lost} within the "
                f"interval, {fmean(gap[0] for gap in gaps):+.4f} in the mean."
            )
    return " ".join(said) or "No comparison is whole yet."


def _estimators(found: dict[str, Any]) -> str:
    """Each estimator's plan on the tasks where it was run, beside those of `auto` and `even`."""
    arms = ("auto", "even", *OTHERS)
    rows = [("divided by", "tasks", "score", "auto’s", "even’s"), ("---",) * 5]
    for arm in arms[2:]:
        done = [task for task in TASKS if _seeds(found, task, BUDGETS[0], ("auto", "even", arm))]
        if done:
            means = [
                f"{fmean(_get(found, task, BUDGETS[0], one, 0)['value'] for task in done):.3f}"
                for one in (arm, "auto", "even")
            ]
            rows.append((f"`{arm}`", str(len(done)), *means))
    if len(rows) == 2:
        return "The other estimators were not run yet."
    return f"The estimators, one seed at {BUDGETS[0]}:\n\n{_lines(rows)}"


def _seconds(runs: dict[str, Any]) -> str:
    own = [(run["measuring"], run["seconds"]) for key, run in runs.items() if " | auto | " in key]
    if not own:
        return "not measured yet"
    share = fmean(measuring / seconds for measuring, seconds in own)
    return f"{share:.0%} of the seconds that the run trains, in the mean"


def _lines(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    page()
