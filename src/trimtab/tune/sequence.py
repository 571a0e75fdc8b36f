"""Tasks that come one after the other, with an adapter each: what is forgotten.

    R[i][j]         the metric of task j after the i-th was learned
    forgetting of j = max_{i < T} R[i][j] - R[T][j]

(Lopez-Paz and Ranzato 2017, arXiv:1706.08840; Chaudhry et al. 2018, arXiv:1801.10112). The base
is frozen and each task trains an adapter of its own, so that nothing of an earlier task is touched:
its forgetting is zero by construction. That is shown here and not assumed: after every stage all
earlier runs are opened anew and evaluated, and their very outputs compared bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.evaluate.metrics import METRICS
from trimtab.evaluate.run import open_run
from trimtab.store.files import write_json
from trimtab.tune.config import Config, parse
from trimtab.tune.folder import Run
from trimtab.tune.run import tune
from trimtab.tune.session import read_data

_ASKED = ("model", "data", "task", "max_steps", "epochs", "batch_size", "seed")
"""What a run does not settle for itself: a method may be planned, or made of a library."""
_SETTLED = ("lr", "rank", "train_rows")  # unless they are asked for


def sequence(
    data: Sequence[str], out: str, fields: Mapping[str, Any], *, quiet: bool = True
) -> dict[str, Any]:
    """Train a run for each of the data sets, and evaluate all that there are after each.

    `fields` are those of a run's configuration. Runs that are finished in `out` are not trained
    again. Written to `out` as `sequence.json`: the matrix, with None above its diagonal.
    """
    for key in ("data", "out"):
        if key in fields:
            raise InputError(
                f"a sequence has {key} of its own for each task: leave it out of the file"
            )
    names = [Path(one).stem for one in data]
    if len(set(names)) < len(names):
        raise InputError(f"the tasks' data need names of their own, and these are {names}")
    if len(names) < 2:
        raise InputError("a sequence has two tasks at least: name the data of each")
    folders = [str(Path(out) / f"{i + 1}-{name}") for i, name in enumerate(names)]
    matrix: list[list[float | None]] = []
    seen: list[list[str]] = []
    for stage, (one, folder) in enumerate(zip(data, folders, strict=True)):
        config, run = parse({**fields, "data": one, "out": folder}, "a sequence"), Run(Path(folder))
        if begun := run.config_file.exists():
            _refuse_others(run, config, fields)
        if not run.over:
            tune(config, resume=begun, quiet=quiet)
        found = [evaluated(earlier) for earlier in folders[: stage + 1]]
        matrix.append([value for value, _ in found] + [None] * (len(names) - stage - 1))
        seen.append([digest for _, digest in found])
    higher = METRICS[config.build_task().metric].higher
    told = {
        "tasks": names,
        "runs": folders,
        "matrix": matrix,
        "forgetting": forgetting(matrix, higher=higher),
        "same_outputs": all(row[j] == seen[j][j] for row in seen for j in range(len(row))),
    }
    write_json(Path(out) / "sequence.json", told)
    return told


def _refuse_others(run: Run, asked: Config, fields: Mapping[str, Any]) -> None:
    """A run of another sequence is neither gone on with nor told as one of this."""
    there = run.config()
    for key in (*_ASKED, *(key for key in _SETTLED if key in fields)):
        if getattr(there, key) != getattr(asked, key):
            raise InputError(
                f"{run.path} holds a run with {key} {getattr(there, key)}, and this sequence has "
                f"{getattr(asked, key)}: choose another --out"
            )


def evaluated(folder: str) -> tuple[float, str]:
    """A run's metric on its test split, and a digest of the outputs that it is of."""
    session = open_run(folder)
    rows = read_data(session.config).test
    outputs = session.outputs(session.encode(rows))
    value = METRICS[session.task.metric].value(
        session.answers(outputs, rows), session.references(rows)
    )
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in outputs))
    return value, digest.hexdigest()


def forgetting(matrix: Sequence[Sequence[float | None]], *, higher: bool = True) -> list[float]:
    """Of every task but the last: the best that it was before the end, less what it is then; the
    other way round where less is better."""
    last, sign = matrix[-1], 1 if higher else -1
    return [
        max(sign * value for row in matrix[j:-1] if (value := row[j]) is not None)
        - sign * (last[j] or 0.0)
        for j in range(len(last) - 1)
    ]
