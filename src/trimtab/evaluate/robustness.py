"""Robustness: the metric where what is given has typos, another case or noise, beside the metric
without; the difference is paired on the same rows.

Of many rows 2,000 are drawn with the run's seed: what each change costs shows on them.
"""

from __future__ import annotations

from typing import Any

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.evaluate import perturb
from trimtab.evaluate.drawn import drawn
from trimtab.evaluate.judged import Judged, judge_rows
from trimtab.evaluate.metrics import METRICS, difference
from trimtab.tasks import Task

MOST = 2000


def measure(judged: Judged) -> dict[str, Any]:
    """Change -> for both models the metric under it, and what it cost."""
    session, there = judged.session, judged.rows.column_names
    columns = [column for column in given(session.task) if column.name in there]
    names = perturb.kinds(columns)
    if not names:
        raise InputError(
            f"robustness changes texts, pictures and recordings, none of which {session.task.name} "
            "is given"
        )
    rows, seed = judged.rows, session.config.seed
    if len(rows) > MOST:
        judged = judge_rows(session, drawn(rows, MOST, seed))
        rows = judged.rows
    as_given = {row: judged.interval(row).as_dict() for row in judged.pair}
    changes = [_under(name, judged, columns) for name in names]
    return {
        "rows": list(judged.pair),
        "n": len(rows),
        "as given": as_given,
        "changes": changes,
    }


def given(task: Task) -> list[Column]:
    """The columns that are changed: all that the task reads, but a text of which an answer is a
    part, by its place."""
    placed = any(column.kind == "answers" for column in task.columns)
    read = [column for column in task.columns if column.name in task.given]
    return [column for column in read if not (placed and column.name == "context")]


def _under(name: str, judged: Judged, columns: list[Column]) -> dict[str, Any]:
    session, metric = judged.session, METRICS[judged.session.task.metric]
    seed = session.config.seed
    under = judge_rows(session, perturb.changed(judged.rows, columns, name, seed))
    return {
        "name": name,
        **{
            row: {
                "value": under.interval(row).as_dict(),
                "cost": difference(
                    metric, under.answers[row], judged.answers[row], judged.references, seed=seed
                ).as_dict(),
            }
            for row in judged.pair
        },
    }
