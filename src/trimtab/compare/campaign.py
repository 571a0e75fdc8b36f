"""`compare`: every method the same budget, on the same work, each run in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.compare import checks, measured, processes, prompted
from trimtab.compare.collect import collect
from trimtab.compare.page import write
from trimtab.compare.processes import Failed
from trimtab.compare.request import Request
from trimtab.compare.schedule import Cell, rates, slug
from trimtab.store.files import read_json, write_json
from trimtab.tune.phases import Phases

RESULT, REPORT = "compare.json", "report.html"
FEW_SHOT = "few-shot"


@dataclass
class Course:
    """What has come of a comparison's runs: the metrics of those that are over, the errors of those
    that failed."""

    request: Request
    phases: Phases
    metrics: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    measured: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    few_shot: dict[str, dict[str, Any]] = field(default_factory=dict)  # by base
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # by folder
    chosen: dict[tuple[str, str], float] = field(default_factory=dict)  # (base, method) -> rate
    notes: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return Path(self.request.out)

    def reported(self, model: str, method: str, rows: int | None) -> list[Cell]:
        """The runs at the chosen rate that came to their end."""
        lr = self.chosen.get((model, method))
        if lr is None:
            return []
        seeds = range(self.request.seed, self.request.seed + self.request.seeds)
        cells = [Cell(model, method, rows, lr, seed) for seed in seeds]
        return [cell for cell in cells if cell in self.metrics]


def compare(request: Request, *, quiet: bool = False) -> dict[str, Any]:
    """Run what is left to run, and return what `compare.json` holds.

    Runs that are over are not run again; those that failed are told with their errors, and tried
    once more by the next call.
    """
    course = Course(request, Phases(quiet))
    course.notes = checks.refuse(request, course.phases)
    with processes.alone(course.out, course.phases):
        request.save()
        for model in request.models:
            _base(course, model)
        found = collect(course)
        write_json(course.out / RESULT, found)
        write(found, course.out / REPORT)
    return found


def _base(course: Course, model: str) -> None:
    """All the runs on one base: its score first where there are several, then the trials."""
    request = course.request
    if len(request.models) > 1:
        _part(course, model, "score", prompted.SCORE, course.scores)
    for method in request.every:
        tried = [
            Cell(model, method, request.largest, lr, request.seed)
            for lr in rates(method, request.trials)
        ]
        for cell in tried:
            _tune(course, cell)
        best = _best([cell for cell in tried if cell in course.metrics], course)
        if best is not None:
            course.chosen[model, method] = best.lr
            for cell in _further(request, best):
                _tune(course, cell)
    _part(course, model, FEW_SHOT, prompted.METRICS_FILE, course.few_shot)
    _measure(course, model)


def _best(cells: list[Cell], course: Course) -> Cell | None:
    """The one that validation chooses; the first of equals, which is nearest to the method's own
    rate."""

    def key(cell: Cell) -> float:
        found = course.metrics[cell]
        value = found["validation"]["value"]
        if value is None:
            return -math.inf
        return float(value) if found["higher_is_better"] else -float(value)

    return max(cells, key=key, default=None)


def _further(request: Request, best: Cell) -> Iterator[Cell]:
    """The other seeds at the chosen rate, and the smaller sizes."""
    for rows in reversed(request.sizes):
        for seed in range(request.seed, request.seed + request.seeds):
            cell = Cell(best.model, best.method, rows, best.lr, seed)
            if cell != best:
                yield cell


def _tune(course: Course, cell: Cell) -> None:
    folder = course.out / cell.place
    fields = course.request.config(
        cell.model, cell.method, str(folder), lr=cell.lr, seed=cell.seed, train_rows=cell.rows
    )
    there = processes.over(folder)
    try:
        with course.phases.doing(str(cell)):
            found = processes.tune(folder, fields)
    except Failed as error:
        course.failed[str(cell.place)] = str(error)
        course.phases.say(f"{cell}: failed: {error}")
        return
    course.metrics[cell] = found
    value, again = found["test"]["value"], " (there already)" if there else ""
    shown = "not defined" if value is None else f"{value:.3f}"
    course.phases.say(f"{cell}: test {found['metric']} {shown}{again}")


def _part(
    course: Course, model: str, name: str, result: str, kept: dict[str, dict[str, Any]]
) -> None:
    request = course.request
    folder = course.out / "runs" / slug(model) / name
    config = request.config(model, "head", str(folder))
    arguments: dict[str, Any] = {"config": config}
    if name == FEW_SHOT:
        arguments |= {"shots": request.shots, "orders": request.orders}
    try:
        with course.phases.doing(f"{name} of {model}"):
            kept[model] = processes.part(name, folder, result, arguments)
    except Failed as error:
        course.failed[str(folder.relative_to(course.out))] = str(error)
        course.phases.say(f"{name} of {model}: failed: {error}")


def _measure(course: Course, model: str) -> None:
    """What the first seed's runs are like in use, all in one process, beside no training."""
    request, folder = course.request, course.out / "runs" / slug(model)
    cells = [
        cell
        for method in request.every
        for cell in course.reported(model, method, request.largest)[:1]
    ]
    left = [cell for cell in cells if not (course.out / cell.place / measured.NAME).exists()]
    if left:
        (folder / measured.NAME).unlink(missing_ok=True)
        runs = [str(course.out / cell.place) for cell in left]
        try:
            with course.phases.doing(f"measuring {len(left)} runs on {model}"):
                arguments = {"runs": runs, "probe": request.probe}
                processes.part("measure", folder, measured.NAME, arguments)
        except Failed as error:
            course.failed[str(folder.relative_to(course.out) / measured.NAME)] = str(error)
            course.phases.say(f"measuring {model}: failed: {error}")
    for cell in cells:
        if (path := course.out / cell.place / measured.NAME).exists():
            course.measured[cell] = read_json(path)
        elif (path := course.out / cell.place / measured.FAILED).exists():
            course.failed[str(cell.place / measured.NAME)] = read_json(path)["error"]
