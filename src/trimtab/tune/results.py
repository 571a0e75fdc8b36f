"""What a run has shown: `metrics.json`, and the report of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compare.report import BASELINES, Change, Report, Row, summary_sentence, write_report
from trimtab.core.adapter import record
from trimtab.core.counts import summary
from trimtab.evaluate.bootstrap import Interval
from trimtab.evaluate.metrics import METRICS, difference, interval
from trimtab.store import fingerprint
from trimtab.store.files import write_tensors
from trimtab.tune import answers as recorded
from trimtab.tune import hardware
from trimtab.tune.folder import OWN
from trimtab.tune.progress import read_log
from trimtab.tune.training import steps

if TYPE_CHECKING:
    from trimtab.tune.run import Work
    from trimtab.tune.trainer import Memory

SCHEMA = 1
_WAITED = 0.1  # of the training's time, beyond which a word is due
_SHOWN = 20  # examples gained and lost, in the report


def conclude(work: Work, memory: Memory, tokens: int, wall: float) -> dict[str, Any]:
    """Measure, write `metrics.json` and `report.html`, and return the metrics."""
    answers = {row: _answers(work, row) for row in work.outputs}
    intervals = {row: _intervals(work, answers[row]) for row in answers}
    differences = {row: _difference(work, answers, row) for row in work.outputs if row != "adapted"}
    _note_waiting(work, memory)
    metrics = _metrics(work, memory, tokens, wall, intervals, differences)
    metrics["metrics"] = _further(work, answers)
    by_row = {row: found["test"] for row, found in answers.items()}
    if work.probed is not None:
        write_tensors(work.run.head, work.probed.state_dict())
    recorded.write(work.run.path, by_row, _references(work, "test"))
    work.run.write_metrics(metrics)
    write_report(_report(work, metrics, answers, intervals, differences), work.run.report)
    return metrics


def _note_waiting(work: Work, memory: Memory) -> None:
    share = memory.waited_for_data / memory.seconds if memory.seconds else 0.0
    if share > _WAITED:
        workers = work.session.config.workers or 0
        work.session.notes.append(
            f"{share:.0%} of training was spent waiting for batches: more --workers (now "
            f"{workers}) make them beside it"
        )


Answers = dict[str, list[Any]]  # by split


def _answers(work: Work, row: str) -> Answers:
    return {
        split: work.session.answers(outputs, getattr(work.splits, split))
        for split, outputs in work.outputs[row].items()
    }


def _references(work: Work, split: str) -> list[Any]:
    return work.session.references(getattr(work.splits, split))


def _intervals(work: Work, answers: Answers) -> dict[str, Interval]:
    seed, metric = work.session.config.seed, METRICS[work.session.task.metric]
    return {
        split: interval(metric, found, _references(work, split), seed=seed)
        for split, found in answers.items()
    }


def _difference(work: Work, answers: Mapping[str, Answers], row: str) -> Interval:
    """The adapted model minus this row, on the same test examples."""
    seed, metric = work.session.config.seed, METRICS[work.session.task.metric]
    one, other = answers["adapted"]["test"], answers[row]["test"]
    return difference(metric, one, other, _references(work, "test"), seed=seed)


def _further(work: Work, answers: Mapping[str, Answers]) -> dict[str, dict[str, float | None]]:
    """The task's other metrics on the test split, by row of the table."""
    references = _references(work, "test")
    return {
        name: {
            row: _number(METRICS[name].value(answers[row]["test"], references)) for row in answers
        }
        for name in work.session.task.metrics[1:]
    }


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None


def _metrics(
    work: Work,
    memory: Memory,
    tokens: int,
    wall: float,
    intervals: dict[str, dict[str, Interval]],
    differences: dict[str, Interval],
) -> dict[str, Any]:
    session, counted = work.session, summary(work.session.model, OWN)
    rate = _rate(work, memory, tokens)
    return {
        "schema": SCHEMA,
        "task": session.task.name,
        "metric": session.task.metric,
        "higher_is_better": METRICS[session.task.metric].higher,
        "method": session.config.method,
        "test": intervals["adapted"]["test"].as_dict(),
        "validation": intervals["adapted"]["validation"].as_dict(),
        "baselines": {
            row: intervals[row]["test"].as_dict() if row in intervals else None for row in BASELINES
        },
        "gain_over": {row: interval.as_dict() for row, interval in differences.items()},
        "baseline_costs": _baseline_costs(work),
        "train_rows": len(work.splits.train),
        "trainable": counted.trainable,
        "total": counted.total,
        "adapter_bytes": folder_bytes(work.run.adapter),
        "train_seconds": round(memory.seconds, 3),
        "data_seconds": round(memory.waited_for_data, 3),
        "probe_seconds": round(work.probe_seconds if work.started_from_probe else 0.0, 3),
        "wall_seconds": round(wall, 3),
        **rate,
        "peak_memory_bytes": hardware.peak_memory(),
        "best_step": memory.best_step,
        "steps": _done(work),
        "planned_steps": steps(session.config, len(work.encoded["train"].examples))[1],
        "seed": session.config.seed,
        "versions": hardware.versions(),
        "hardware": hardware.facts(),
        "base_fingerprint": _fingerprint(work),
        "notes": session.notes,
    }


def _fingerprint(work: Work) -> str:
    """The base's name, the same under every method: a new head is no part of it."""
    model = work.session.model
    described = fingerprint.describe(model, set(work.session.fresh), record(model).originals())
    return fingerprint.fingerprint(described)


def _rate(work: Work, memory: Memory, tokens: int) -> dict[str, float | None]:
    """Tokens in a second of training, padding not counted; or examples, where only a head was
    trained, on cached features.
    """
    if tokens:
        return {"tokens_per_second": round(tokens / memory.seconds, 1) if memory.seconds else None}
    config = work.session.config
    samples = _done(work) * config.batch_size * config.gradient_accumulation
    return {"samples_per_second": round(samples / memory.seconds, 1) if memory.seconds else None}


def _done(work: Work) -> int:
    """Optimizer steps, until training came to its end or patience did."""
    return max((entry["step"] for entry in read_log(work.run.log)), default=0)


def _baseline_costs(work: Work) -> dict[str, dict[str, float]]:
    """What the baselines took: trained parameters, seconds, bytes to keep."""
    costs = {"base": {"trainable": 0, "seconds": 0.0, "bytes": 0}}
    if work.probed is not None:
        tensors = list(work.probed.parameters())
        costs["head"] = {
            "trainable": sum(t.numel() for t in tensors),
            "seconds": round(work.probe_seconds, 3),
            "bytes": sum(t.numel() * t.element_size() for t in tensors),
        }
    return costs


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _report(
    work: Work,
    metrics: dict[str, Any],
    answers: Mapping[str, Answers],
    intervals: dict[str, dict[str, Interval]],
    differences: dict[str, Interval],
) -> Report:
    session, counted = work.session, summary(work.session.model, OWN)
    reference = "head" if "head" in intervals else "base"
    gained, lost = _changes(work, answers, reference)
    log = read_log(work.run.log)
    rows = _rows(metrics, intervals, differences)
    metric = session.task.metric
    return Report(
        title=f"{session.config.method} on {Path(session.config.data).name}",
        task=session.task.name,
        metric=metric,
        method=session.config.method,
        model=session.config.model,
        summary=summary_sentence(
            method=session.config.method,
            model=session.config.model,
            metric=metric,
            rows=rows,
            total=counted.total,
            greater_is_better=METRICS[metric].higher,
        ),
        rows=rows,
        losses=[(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
        evaluations=[
            (entry["step"], entry["eval_loss"], entry[f"eval_{session.task.watched}"])
            for entry in log
            if "eval_loss" in entry
        ],
        sites=list(counted.sites.items()),
        reference=BASELINES[reference],
        gained=gained[:_SHOWN],
        lost=lost[:_SHOWN],
        gained_total=len(gained),
        lost_total=len(lost),
        facts=_facts(metrics, session.config.model_dump()),
        notes=session.notes,
        total=counted.total,
    )


def _rows(
    metrics: dict[str, Any],
    intervals: dict[str, dict[str, Interval]],
    differences: dict[str, Interval],
) -> list[Row]:
    costs = metrics["baseline_costs"]
    rows = [
        Row(
            BASELINES[row],
            intervals[row]["validation"],
            intervals[row]["test"],
            trainable=int(costs[row]["trainable"]),
            seconds=costs[row]["seconds"] or None,
            bytes=int(costs[row]["bytes"]) or None,
            difference=differences[row],
        )
        for row in BASELINES
        if row in intervals
    ]
    adapted = Row(
        metrics["method"],
        intervals["adapted"]["validation"],
        intervals["adapted"]["test"],
        metrics["trainable"],
        metrics["train_seconds"] + metrics["probe_seconds"],
        metrics["adapter_bytes"],
    )
    return [*rows, adapted]


def _changes(
    work: Work, answers: Mapping[str, Answers], reference: str
) -> tuple[list[Change], list[Change]]:
    """Test examples on which the adapted model does better than the reference, and worse."""
    metric = METRICS[work.session.task.metric]
    each, sign = metric.each, 1 if metric.higher else -1
    if each is None:
        return [], []
    rows, expected = work.splits.test, _references(work, "test")
    old, new = answers[reference]["test"], answers["adapted"]["test"]
    gained, lost = [], []
    for i, (before, after, right) in enumerate(zip(old, new, expected, strict=True)):
        by = sign * (each(after, right) - each(before, right))
        if by and math.isfinite(by):
            shown = work.session.task.shown(rows, i)
            change = Change(shown, _told(right), _told(before), _told(after))
            (gained if by > 0 else lost).append(change)
    return gained, lost


def _told(answer: Any) -> str:
    return ", ".join(map(str, answer)) if isinstance(answer, list | tuple) else str(answer)


def _facts(metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """What one needs to judge and repeat the run, as text."""
    hardware_ = {key: value for key, value in metrics["hardware"].items() if value is not None}
    chosen = {
        key: value
        for key, value in config.items()
        if value not in (None, [], {}) and key not in {"labels", "measured"}
    }
    groups = {
        "configuration": chosen,
        "measured choices": config["measured"],
        "hardware": hardware_,
        "versions": metrics["versions"],
    }
    facts = {
        name: ", ".join(f"{key} {value}" for key, value in group.items())
        for name, group in groups.items()
        if group
    }
    return {**facts, "base fingerprint": metrics["base_fingerprint"]}
