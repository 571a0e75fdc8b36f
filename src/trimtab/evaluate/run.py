"""A finished run on data: its own held-out data, or new data."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError
from trimtab.data import read_rows
from trimtab.data.columns import Column
from trimtab.data.loading import Arrange
from trimtab.evaluate import calibration, fairness, robustness, slices, stereotypes
from trimtab.evaluate.judged import ADAPTED, Judged, judge_rows, kept_head
from trimtab.evaluate.metrics import METRICS
from trimtab.evaluate.page import write
from trimtab.store import load
from trimtab.tune import positions
from trimtab.tune.folder import Run
from trimtab.tune.phases import QUIET, Phases
from trimtab.tune.session import (
    Session,
    check_digest,
    column_names,
    faults,
    open_session,
    read_data,
)


def open_run(folder: str, phases: Phases = QUIET) -> Session:
    """The base of a finished run with its adapter on it, in the run's dtype and attention."""
    run = Run(Path(folder))
    config = run.finished()
    assert config.labels is not None
    with phases.doing(f"opening {config.model} with {run.adapter}"):
        session = open_session(config, config.labels)
        session.probed = kept_head(run, session.model)
        load(session.model, run.adapter)
    session.phases = phases
    if config.first_position:
        positions.narrow(session.model)
    return session


@dataclass(frozen=True)
class Asked:
    """What `eval` looks at beside the metric: slices by columns, fairness between the groups of
    columns for the label that is `positive`, and probes that are on or off."""

    slices: Sequence[str] = ()
    fairness: Sequence[str] = ()
    positive: str | None = None
    calibration: bool = False
    robustness: bool = False
    stereotypes: bool = False

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys([*self.slices, *self.fairness]))


def evaluate(
    folder: str,
    data: str | None,
    split: str,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
    quiet: bool = True,
    asked: Asked = Asked(),
    out: str | None = None,
) -> dict[str, Any]:
    """The metric of a run's adapter, with its interval, and its gain over the base without the
    adapter; and all that is `asked` beside.

    Without `data` the run's own data is read again, and the reported metrics come out again
    exactly. `columns` says which are the text and the label there, where the run does not. With
    `out`, a folder, the same is written there as `eval.json` and as a page, `eval.html`.
    """
    if asked.positive is not None and not asked.fairness:
        raise InputError("--positive is of --fairness COLUMN, which is missing")
    phases = Phases(quiet)
    session = open_run(folder, phases)
    with phases.doing(f"reading {data or session.config.data}"):
        rows = _rows(session, data, split, columns or {}, skip_bad_rows, asked.columns)
    judged = judge_rows(session, rows)
    adapted, references = judged.answers[ADAPTED], judged.references
    result = {
        "task": session.task.name,
        "metric": session.task.metric,
        "data": data or session.config.data,
        "split": split if data is None else None,
        "value": judged.interval(ADAPTED).as_dict(),
        "base": judged.interval("base").as_dict(),
        "gain_over_base": judged.gain("base").as_dict(),
        **_head(judged),
        "metrics": {
            name: METRICS[name].value(adapted, references) for name in session.task.metrics[1:]
        },
        **_beside(judged, asked, split if data is None else None),
        "notes": session.notes,
    }
    if out is not None:
        write(result, folder, Path(out))
    return result


def _head(judged: Judged) -> dict[str, Any]:
    if "head" not in judged.outputs:
        return {}
    return {
        "head": judged.interval("head").as_dict(),
        "gain_over_head": judged.gain("head").as_dict(),
    }


def _beside(judged: Judged, asked: Asked, split: str | None) -> dict[str, Any]:
    """What was asked for beside the metric."""
    session, found = judged.session, dict[str, Any]()
    if asked.columns and judged.against == "base" and session.fresh:
        session.notes.append(
            "the base's new head is as it was drawn, and this run kept none that was trained "
            "alone: what the adapted model stands beside answers at random"
        )
    if asked.slices:
        found["slices"] = [slices.by_column(judged, name) for name in asked.slices]
    if asked.fairness:
        groups = [fairness.by_group(judged, name, asked.positive) for name in asked.fairness]
        found["fairness"] = groups
        session.notes.extend(said for one in groups for said in fairness.warnings(one))
    if asked.calibration:
        held_out = _validation(judged) if split != "validation" else None
        found["calibration"] = calibration.measure(judged, held_out)
    if asked.robustness:
        found["robustness"] = robustness.measure(judged)
    if asked.stereotypes:
        found["stereotypes"] = stereotypes.measure(session)
    return found


def _validation(judged: Judged) -> Judged | None:
    """The run's own validation split, by which a temperature is found."""
    session = judged.session
    try:
        rows = read_data(session.config).validation
        check_digest(session.config, "validation", rows)
    except InputError as error:
        session.notes.append(f"no temperature was fitted: {error}")
        return None
    return judge_rows(session, rows)


def _rows(
    session: Session,
    data: str | None,
    split: str,
    columns: Mapping[str, str],
    skip_bad_rows: bool,
    beside: Sequence[str],
) -> Any:
    if data is None:
        if columns:
            raise InputError(
                "the run's own data has the columns of the run: name them with --data only"
            )
        rows = getattr(read_data(session.config, beside), split)
        check_digest(session.config, split, rows)
        return rows
    rows, notes = read_rows(
        data,
        _known(session),
        names=columns,
        skip_bad_rows=skip_bad_rows,
        fault=faults(session.task, session.config.model),
        arrange=_arrange(session, new=False),
        beside=beside,
    )
    session.notes.extend(notes)
    session.task.check(rows, session.labels, data)
    return rows


def predict(
    folder: str,
    data: str,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
) -> list[dict[str, Any]]:
    """For every row of a file (or `-`, standard input) what the task tells of it: for texts the
    text, the label, its probability."""
    session = open_run(folder)
    given = [column for column in _known(session) if column.name in session.task.given]
    rows, notes = read_rows(
        data,
        given,
        names=columns or {},
        skip_bad_rows=skip_bad_rows,
        fault=faults(session.task, session.config.model, labelled=False),
        arrange=_arrange(session, new=True),
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    outputs = session.outputs(session.encode(rows, labelled=False))
    return session.task.told(outputs, rows, session.labels, session.processor)


def _arrange(session: Session, *, new: bool) -> Arrange:
    return functools.partial(session.task.arranged, model=session.config.model, new=new)


def _known(session: Session) -> list[Column]:
    """The task's columns. Other data may have them under the names that the run's had, or under
    the usual ones."""
    own = column_names(session.config)
    return [
        replace(column, aliases=(own[column.name], *column.aliases))
        if column.name in own
        else column
        for column in session.task.columns
    ]
