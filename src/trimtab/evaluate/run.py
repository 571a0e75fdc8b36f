"""A finished run on data: its own held-out data, or new data."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError
from trimtab.data import read_rows
from trimtab.data.columns import Column
from trimtab.data.loading import Arrange
from trimtab.evaluate.metrics import METRICS, difference, interval
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
        load(session.model, run.adapter)
    session.phases = phases
    if config.first_position:
        positions.narrow(session.model)
    return session


def evaluate(
    folder: str,
    data: str | None,
    split: str,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """The metric of a run's adapter, with its interval, and its gain over the base without the
    adapter.

    Without `data` the run's own data is read again, and the reported metrics come out again
    exactly. `columns` says which are the text and the label there, where the run does not.
    """
    from trimtab import activate

    phases = Phases(quiet)
    session = open_run(folder, phases)
    with phases.doing(f"reading {data or session.config.data}"):
        rows = _rows(session, data, split, columns or {}, skip_bad_rows)
        encoded = session.encode(rows)
    adapted = session.answers(session.outputs(encoded, "evaluating adapted"), rows)
    activate(session.model, None)
    base = session.answers(session.outputs(encoded, "evaluating base"), rows)
    references, seed = session.references(rows), session.config.seed
    metric = METRICS[session.task.metric]
    return {
        "task": session.task.name,
        "metric": session.task.metric,
        "data": data or session.config.data,
        "split": split if data is None else None,
        "value": interval(metric, adapted, references, seed=seed).as_dict(),
        "base": interval(metric, base, references, seed=seed).as_dict(),
        "gain_over_base": difference(metric, adapted, base, references, seed=seed).as_dict(),
        "metrics": {
            name: METRICS[name].value(adapted, references) for name in session.task.metrics[1:]
        },
        "notes": session.notes,
    }


def _rows(
    session: Session,
    data: str | None,
    split: str,
    columns: Mapping[str, str],
    skip_bad_rows: bool,
) -> Any:
    if data is None:
        if columns:
            raise InputError(
                "the run's own data has the columns of the run: name them with --data only"
            )
        rows = getattr(read_data(session.config), split)
        check_digest(session.config, split, rows)
        return rows
    rows, notes = read_rows(
        data,
        _known(session),
        names=columns,
        skip_bad_rows=skip_bad_rows,
        fault=faults(session.task, session.config.model),
        arrange=_arrange(session, new=False),
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
