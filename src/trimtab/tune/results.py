"""What a run has shown: `metrics.json`, and the report of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.compare.report import BASELINES, Change, Report, Row, summary_sentence, write_report
from trimtab.core.adapter import record
from trimtab.core.counts import summary
from trimtab.evaluate.bootstrap import Interval, mean_interval, paired_mean
from trimtab.store import fingerprint
from trimtab.tune import hardware
from trimtab.tune.progress import read_log

if TYPE_CHECKING:
    from trimtab.tune.run import Work
    from trimtab.tune.trainer import Memory

SCHEMA = 1
_SHOWN = 20  # examples gained and lost, in the report


def conclude(work: Work, memory: Memory, tokens: int, wall: float) -> dict[str, Any]:
    """Measure, write `metrics.json` and `report.html`, and return the metrics."""
    intervals = {row: _intervals(work, row) for row in work.outputs}
    differences = {row: _difference(work, row) for row in work.outputs if row != "adapted"}
    metrics = _metrics(work, memory, tokens, wall, intervals, differences)
    work.run.write_metrics(metrics)
    write_report(_report(work, metrics, intervals, differences), work.run.report)
    return metrics


def _scores(work: Work, row: str, split: str) -> np.ndarray:
    rows = getattr(work.splits, split)
    return work.session.scores(work.outputs[row][split], rows)


def _intervals(work: Work, row: str) -> dict[str, Interval]:
    seed = work.session.config.seed
    return {s: mean_interval(_scores(work, row, s), seed=seed) for s in ("validation", "test")}


def _difference(work: Work, row: str) -> Interval:
    """The adapted model minus this row, on the same test examples."""
    seed = work.session.config.seed
    return paired_mean(_scores(work, "adapted", "test"), _scores(work, row, "test"), seed=seed)


def _metrics(
    work: Work,
    memory: Memory,
    tokens: int,
    wall: float,
    intervals: dict[str, dict[str, Interval]],
    differences: dict[str, Interval],
) -> dict[str, Any]:
    session, counted = work.session, summary(work.session.model)
    rate = _rate(work, memory, tokens)
    return {
        "schema": SCHEMA,
        "task": session.task.name,
        "metric": session.task.metric,
        "method": session.config.method,
        "test": intervals["adapted"]["test"].as_dict(),
        "validation": intervals["adapted"]["validation"].as_dict(),
        "baselines": {
            row: intervals[row]["test"].as_dict() if row in intervals else None for row in BASELINES
        },
        "gain_over": {row: interval.as_dict() for row, interval in differences.items()},
        "baseline_costs": _baseline_costs(work),
        "trainable": counted.trainable,
        "total": counted.total,
        "adapter_bytes": folder_bytes(work.run.adapter),
        "train_seconds": round(memory.seconds, 3),
        "probe_seconds": round(work.probe_seconds if work.started_from_probe else 0.0, 3),
        "wall_seconds": round(wall, 3),
        **rate,
        "peak_memory_bytes": hardware.peak_memory(),
        "best_step": memory.best_step,
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
    config, log = work.session.config, read_log(work.run.log)
    done = max((entry["step"] for entry in log), default=0)
    samples = done * config.batch_size * config.gradient_accumulation
    return {"samples_per_second": round(samples / memory.seconds, 1) if memory.seconds else None}


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
    intervals: dict[str, dict[str, Interval]],
    differences: dict[str, Interval],
) -> Report:
    session, counted = work.session, summary(work.session.model)
    reference = "head" if "head" in intervals else "base"
    gained, lost = _changes(work, reference)
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
        ),
        rows=rows,
        losses=[(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
        evaluations=[
            (entry["step"], entry["eval_loss"], entry[f"eval_{metric}"])
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


def _changes(work: Work, reference: str) -> tuple[list[Change], list[Change]]:
    """Test examples that the adapted model gets right and the reference wrong, and the other
    way.
    """
    labels, rows = work.session.labels, work.splits.test
    before, after = _scores(work, reference, "test"), _scores(work, "adapted", "test")
    old, new = (work.outputs[row]["test"].argmax(-1) for row in (reference, "adapted"))
    changes = {
        i: Change(rows["text"][i], rows["label"][i], labels[old[i]], labels[new[i]])
        for i in map(int, np.flatnonzero(before != after))
    }
    gained = [change for i, change in changes.items() if after[i] > before[i]]
    return gained, [change for i, change in changes.items() if after[i] < before[i]]


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
