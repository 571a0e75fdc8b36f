"""From the runs' own files to what a comparison tells: `compare.json`, and the report made of it.

Every number here is read from a run's file, which `sources` names as `path#key`, or computed from
such numbers and answers with the comparison's seed: the same runs give the same block, always.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compare import energy, measured, prompted
from trimtab.compare.pairing import Runs, minus, over_seeds
from trimtab.compare.processes import SPENT
from trimtab.compare.schedule import Cell, rates, slug
from trimtab.compare.verdict import by_class, judge, rival_of
from trimtab.core.errors import TrimtabError
from trimtab.evaluate.metrics import METRICS, Metric
from trimtab.store.files import read_json
from trimtab.tune import answers as recorded

if TYPE_CHECKING:
    from trimtab.compare.campaign import Course

SCHEMA = 1
FEW_SHOT, BASE, HEAD_ONLY = "few-shot", "base, untrained", "head, first"
_KEPT = ("task", "data", "steps", "trials", "seeds", "seed", "models", "methods", "margin")

Row = dict[str, Any]


class Answers:
    """What runs answered to the same test examples, read once, and held to what they reported."""

    def __init__(self, metric: Metric, seed: int) -> None:
        self.metric, self.seed = metric, seed
        self.references: list[Any] | None = None

    def of(self, folders: Sequence[Path], which: str, expected: Sequence[Any]) -> Runs | None:
        """The answers of each run; None where one left none, or was held to other examples."""
        found = []
        for folder, value in zip(folders, expected, strict=True):
            one = recorded.read(folder)
            if one is None or which not in one[0]:
                return None
            if self.references is None:
                self.references = one[1]
            if not _same(one[1], self.references):
                return None
            if value != self.metric.value(one[0][which], self.references):
                return None
            found.append(one[0][which])
        return found or None


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def collect(course: Course) -> dict[str, Any]:
    """The data block."""
    request = course.request
    known = next(iter(course.metrics.values()), None)
    if known is None:
        raise TrimtabError(_nothing(course))
    metric = METRICS[known["metric"]]
    answers = Answers(metric, request.seed)
    rows: list[Row] = []
    runs: list[Runs | None] = []
    for model in request.models:
        for row, answered in _of_base(course, model, answers):
            rows.append(row)
            runs.append(answered)
    reference = _reference(rows, metric)
    for row, answered in zip(rows, runs, strict=True):
        row["against"] = _against(row, answered, reference, rows, runs, answers)
    rival = rival_of(rows, reference, higher=metric.higher)
    for row, answered in zip(rows, runs, strict=True):
        row["against_rival"] = _against(row, answered, rival, rows, runs, answers)
    watts, source = energy.watts(request.watts)
    for row in rows:
        _power(course, row, watts)
    told = {key: value for key, value in request.model_dump().items() if key in _KEPT}
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "request": {**told, "sizes": request.sizes},
        "name": Path(request.data).stem,
        "task": known["task"],
        "metric": metric.name,
        "about_metric": metric.description,
        "higher_is_better": metric.higher,
        "margin": _margin(request.margin, metric, rows, reference),
        "power": {"watts": watts, "source": source, "counters": bool(energy.counters())},
        "intensity": {"grams_per_kwh": request.intensity, "source": _intensity(request.intensity)},
        "rows": rows,
        "reference": reference,
        "rival": rival,
        "few_shot_not_applicable": {
            model: one["why"] for model, one in course.few_shot.items() if not one["applicable"]
        },
        "scores": _scores(course, rows, metric),
        "failed": course.failed,
        "notes": [*course.notes, *_notes(course)],
        "hardware": known["hardware"],
        "versions": known["versions"],
    }
    found["verdict"] = judge(found)
    found["classes"] = by_class(found, runs, answers.references)
    return found


def _of_base(course: Course, model: str, answers: Answers) -> list[tuple[Row, Runs | None]]:
    """The rows of one base: untrained, shown examples, and every method that came to an end."""
    found: list[tuple[Row, Runs | None]] = []
    for method in course.request.every:
        cells = course.reported(model, method, course.request.largest)
        if not cells:
            continue
        if not found:
            found += _untrained(course, cells[0], answers)
            found += _few_shot(course, model, answers)
        found.append(_trained(course, cells, answers))
    return found


def _untrained(course: Course, cell: Cell, answers: Answers) -> list[tuple[Row, Runs | None]]:
    """The base as it was loaded; and its head trained alone on features, where new heads begin."""
    metrics, found = course.metrics[cell], []
    for name, method, kind in (("base", BASE, "base"), ("head", HEAD_ONLY, "head")):
        test = metrics["baselines"][name]
        if test is None:
            continue
        row, file = _row(cell.model, method, kind, test), f"{cell.place / 'metrics.json'}"
        cost = metrics["baseline_costs"][name]
        row |= {"trained": cost["trainable"], "total": metrics["total"]}
        row |= {"bytes": cost["bytes"], "seconds": cost["seconds"]}
        row["sources"] = {"test": [f"{file}#baselines.{name}.value"]}
        if kind == "head":
            row["about"] = "epochs of its own on features, before each run: where new heads begin"
            keys = {"trained": "trainable", "bytes": "bytes", "seconds": "seconds"}
            for key, own in keys.items():
                row["sources"][key] = [f"{file}#baseline_costs.{name}.{own}"]
        found.append((row, answers.of([course.out / cell.place], name, [test["value"]])))
    return found


def _few_shot(course: Course, model: str, answers: Answers) -> list[tuple[Row, Runs | None]]:
    one = course.few_shot.get(model)
    if one is None or not one["applicable"]:
        return []
    place = Path("runs") / slug(model) / FEW_SHOT
    file = f"{place / prompted.METRICS_FILE}"
    row = _row(model, FEW_SHOT, one["kind"], one["test"])
    row |= {
        "about": one["about"],
        "validation": one["validation"]["value"],
        "trained": 0,
        "bytes": one["bytes"],
        "seconds": one["seconds"],
        "peak_memory": one["peak_memory_bytes"],
        "milliseconds": {"unmerged": one["milliseconds"]},
        "tokens": one["tokens"],
        "by_order": one.get("by_order"),
    }
    row["sources"] = {
        "test": [f"{file}#test.value"],
        "validation": [f"{file}#validation.value"],
        "bytes": [f"{file}#bytes"],
        "seconds": [f"{file}#seconds"],
        "peak_memory": [f"{file}#peak_memory_bytes"],
        "milliseconds.unmerged": [f"{file}#milliseconds"],
        "tokens": [f"{file}#tokens"],
    }
    return [(row, answers.of([course.out / place], "adapted", [one["test"]["value"]]))]


def _row(model: str, method: str, kind: str, test: dict[str, Any] | None) -> Row:
    empty = ("about", "lr", "validation", "trained", "total", "bytes", "seconds", "peak_memory",
             "milliseconds", "not_merged", "tokens", "forgetting", "train", "gap")  # fmt: skip
    return {"model": model, "method": method, "kind": kind, "test": test,
            **dict.fromkeys(empty), "curve": [], "trials": [], "by_seed": []}  # fmt: skip


def _trained(course: Course, cells: Sequence[Cell], answers: Answers) -> tuple[Row, Runs | None]:
    first, found = cells[0], [course.metrics[cell] for cell in cells]
    files = [f"{cell.place / 'metrics.json'}" for cell in cells]
    values = [one["test"]["value"] for one in found]
    runs = answers.of([course.out / cell.place for cell in cells], "adapted", values)
    row = _row(first.model, first.method, "trained", _test(found, runs, answers))
    row |= {
        "lr": first.lr,
        "validation": _mean([one["validation"]["value"] for one in found]),
        "trained": found[0]["trainable"],
        "total": found[0]["total"],
        "bytes": found[0]["adapter_bytes"],
        "seconds": _mean([one["train_seconds"] + one["probe_seconds"] for one in found]),
        "peak_memory": max(one["peak_memory_bytes"] for one in found),
        "best_step": found[0]["best_step"],
        "by_seed": [
            {"seed": cell.seed, "test": value, "source": f"{file}#test.value"}
            for cell, value, file in zip(cells, values, files, strict=True)
        ],
        "trials": _trials(course, first),
        "curve": _curve(course, first, answers),
        "folder": str(first.place),
    }
    row["sources"] = {
        "test": [f"{file}#test.value" for file in files],
        "validation": [f"{file}#validation.value" for file in files],
        "trained": [f"{files[0]}#trainable"],
        "bytes": [f"{files[0]}#adapter_bytes"],
        "seconds": [f"{file}#train_seconds+probe_seconds" for file in files],
        "peak_memory": [f"{file}#peak_memory_bytes" for file in files],
    }
    _in_use(course, first, row)
    return row, runs


def _test(
    found: Sequence[dict[str, Any]], runs: Runs | None, answers: Answers
) -> dict[str, Any] | None:
    """With one seed what the run reported; with several their mean, on the same examples."""
    if len(found) == 1:
        own: dict[str, Any] = found[0]["test"]
        return own if own["value"] is not None else None
    if runs is None or answers.references is None:
        value = _mean([one["test"]["value"] for one in found])
        return None if value is None else {**found[0]["test"], "value": value}
    return over_seeds(answers.metric, runs, answers.references, answers.seed).as_dict()


def _trials(course: Course, cell: Cell) -> list[dict[str, Any]]:
    """What each learning rate came to on validation."""
    told: list[dict[str, Any]] = []
    for lr in rates(cell.method, course.request.trials):
        tried = Cell(cell.model, cell.method, cell.rows, lr, course.request.seed)
        file = f"{tried.place / 'metrics.json'}#validation.value"
        metrics = course.metrics.get(tried)
        if metrics is None:
            told.append({"lr": lr, "validation": None, "seconds": None, "source": None})
            continue
        found, seconds = metrics["validation"]["value"], metrics["train_seconds"]
        told.append({"lr": lr, "validation": found, "seconds": seconds, "source": file})
    return sorted(told, key=lambda one: one["lr"])


def _curve(course: Course, cell: Cell, answers: Answers) -> list[dict[str, Any]]:
    """The metric by rows of train, at the rate that was chosen for the most of them."""
    points = []
    for rows in course.request.sizes:
        cells = course.reported(cell.model, cell.method, rows)
        if not cells:
            continue
        found = [course.metrics[one] for one in cells]
        values = [one["test"]["value"] for one in found]
        runs = answers.of([course.out / one.place for one in cells], "adapted", values)
        test = _test(found, runs, answers)
        if test is not None:
            files = [f"{one.place / 'metrics.json'}#test.value" for one in cells]
            count = found[0]["train_rows"] if rows is None else rows
            points.append({"rows": count, **test, "sources": files})
    return points


def _in_use(course: Course, cell: Cell, row: Row) -> None:
    one = course.measured.get(cell)
    if one is None:
        return
    file = f"{cell.place / measured.NAME}"
    row |= {key: one[key] for key in ("milliseconds", "not_merged", "tokens", "forgetting")}
    row["train"] = one["train"]
    value = course.metrics[cell]["test"]["value"]
    if value is not None and one["train"]["value"] is not None:
        row["gap"] = one["train"]["value"] - value
    for name in one["milliseconds"]:
        row["sources"][f"milliseconds.{name}"] = [f"{file}#milliseconds.{name}"]
    row["sources"]["train.value"] = [f"{file}#train.value"]
    if one["forgetting"]["measure"] is not None:
        for name in ("adapted", "without"):
            row["sources"][f"forgetting.{name}"] = [f"{file}#forgetting.{name}"]


def _reference(rows: Sequence[Row], metric: Metric) -> int | None:
    """The row that all are held against: full fine-tuning, of several bases that which validation
    prefers; without one, the best trained row."""
    trained = [i for i, row in enumerate(rows) if row["kind"] == "trained" and row["test"]]
    full = [i for i in trained if rows[i]["method"] == "full"] or trained
    sign = 1 if metric.higher else -1
    return max(full, key=lambda i: _preferred(rows[i], sign), default=None)


def _preferred(row: Row, sign: int) -> float:
    """By validation; a metric that is not defined there is the least."""
    return -math.inf if row["validation"] is None else sign * row["validation"]


def _against(
    row: Row,
    found: Runs | None,
    reference: int | None,
    rows: Sequence[Row],
    runs: Sequence[Runs | None],
    answers: Answers,
) -> dict[str, Any] | None:
    """The difference to the reference, paired on the same examples, and what it shows."""
    if reference is None or rows[reference] is row:
        return None
    other = runs[reference]
    if found is None or other is None or answers.references is None:
        return None
    difference = minus(answers.metric, found, other, answers.references, answers.seed)
    if difference.includes_zero:
        shows = "no difference shown"
    else:
        shows = "better" if (difference.value > 0) == answers.metric.higher else "worse"
    return {**difference.as_dict(), "shows": shows}


def _margin(
    stated: float | None, metric: Metric, rows: Sequence[Row], reference: int | None
) -> float:
    """Of the metric: as stated, or a hundredth of its range, or of the reference's value."""
    if stated is not None:
        return stated
    if metric.unit in ("share", "points"):
        return 0.01 if metric.unit == "share" else 1.0
    test = None if reference is None else rows[reference]["test"]
    return 0.01 * abs(test["value"]) if test else 0.0


def _power(course: Course, row: Row, watts: float) -> None:
    """Energy of training, and of one prediction, in joules and grams of CO2."""
    counted = None
    kept = course.out / row["folder"] / SPENT if row.get("folder") else None
    if kept is not None and kept.exists():  # a killed comparison's last run leaves none
        spent = read_json(kept)
        if spent["joules"] is not None and spent["seconds"]:
            counted = spent["joules"] / spent["seconds"]
    power, intensity = counted or watts, course.request.intensity
    joules = None if row["seconds"] is None else power * row["seconds"]
    took = (row["milliseconds"] or {}).get("merged") or (row["milliseconds"] or {}).get("unmerged")
    each = None if took is None else power * took / 1000
    row["energy"] = {
        "watts": power,
        "counted": counted is not None,
        "training": _spent(joules, intensity),
        "thousand": _spent(None if each is None else 1000 * each, intensity),
    }


def _spent(joules: float | None, intensity: float) -> dict[str, float] | None:
    if joules is None:
        return None
    return {"joules": joules, "grams": energy.carbon(joules, intensity)}


def _scores(course: Course, rows: Sequence[Row], metric: Metric) -> list[dict[str, Any]]:
    """Of several bases what was foretold, beside what came of it."""
    told = []
    for model, score in course.scores.items():
        own = [row for row in rows if row["model"] == model and row["kind"] == "trained"]
        sign = 1 if metric.higher else -1
        best = max(own, key=lambda row: _preferred(row, sign), default=None)
        head = next((row for row in own if row["method"] == "head"), None)
        told.append({
            "model": model,
            "logme": score["logme"],
            "why": score.get("why"),
            "head": head and head["test"],
            "best": best and {"method": best["method"], "test": best["test"]},
            "source": f"{Path('runs') / slug(model) / 'score' / prompted.SCORE}#logme",
        })  # fmt: skip
    return told


def _notes(course: Course) -> list[str]:
    """What the runs noted, each once."""
    every = [note for one in course.metrics.values() for note in one["notes"]]
    return list(dict.fromkeys(every))


def _intensity(stated: float) -> str:
    return energy.SOURCE if stated == 480.0 else f"{stated:g} g/kWh, as stated with --intensity"


def _nothing(course: Course) -> str:
    """What to say where no run came to its end."""
    place, error = next(iter(course.failed.items()), ("", "nothing was asked for"))
    return f"no run came to its end; the first, {place}, failed: {error}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) and known else None
