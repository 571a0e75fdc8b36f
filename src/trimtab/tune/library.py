"""Which of one's adapters is the best start for new data, predicted before anything is trained.

Each adapter's body is put on the base in turn, and a few hundred training examples go through it.
Where a head reads one vector an example, the vectors' LogME (You et al. 2021, arXiv:2102.11005)
says how well they explain the labels, and a linear probe by cross-validation how often it would be
right. Elsewhere it is the loss of the examples, with the adapter as it is. The base without an
adapter stands among them: a start that does not beat it is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.adapt import activate, detach
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.evaluate.predict import batches, on, precision
from trimtab.evaluate.transferability import logme
from trimtab.store import bodies, hf, native
from trimtab.tasks.task import Encoded
from trimtab.tune import features
from trimtab.tune.config import Config
from trimtab.tune.folder import Run
from trimtab.tune.phases import QUIET, Phases
from trimtab.tune.session import Session, open_session, read_data, settle_length

EXAMPLES = 512
NONE = "no adapter"
_NAME, _FOLDS = "candidate", 4


@dataclass(frozen=True)
class Forecast:
    """How good a start is predicted to be: `score`, more of which is better, `probe`, the accuracy
    of a linear probe, and `refused`, why an adapter cannot stand on this base."""

    name: str
    folder: Path | None
    score: float = np.nan
    probe: float | None = None
    refused: str | None = None


def adapters(folder: str) -> dict[str, Path]:
    """Name -> folder of every finished run, or adapter, that lies in a folder."""
    library = Path(folder)
    if not library.is_dir():
        raise InputError(f"{folder} is no folder with runs or adapters in it")
    found = {path.name: path for path in sorted(library.iterdir()) if _is_adapter(path)}
    if not found:
        raise InputError(f"{folder} has no finished run and no adapter in it")
    return found


def _is_adapter(path: Path) -> bool:
    where = path / "adapter" if Run(path).config_file.exists() else path
    return any((where / name).exists() for name in (native.CONFIG, hf.CONFIG))


def body(path: Path) -> Path:
    """Of a run its adapter."""
    return Run(path).adapter if Run(path).config_file.exists() else path


def forecast(session: Session, rows: Any, found: dict[str, Path]) -> list[Forecast]:
    """All of them, and no adapter, the best first."""
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:EXAMPLES]
    encoded = session.encode(rows.select(sorted(drawn.tolist())))
    told = [Forecast(NONE, None, *_scores(session, encoded))]
    for name, path in session.phases.track(list(found.items()), "trying adapters"):
        try:
            with standing(session, body(path)):
                told.append(Forecast(name, path, *_scores(session, encoded)))
        except (AdapterMismatch, InputError) as error:
            told.append(Forecast(name, path, refused=str(error)))
    return sorted(told, key=lambda one: (one.refused is not None, -_known(one.score)))


def _known(score: float) -> float:
    """What is not defined, as of an adapter that diverged, comes last."""
    return score if np.isfinite(score) else -np.inf


def survey(config: Config, folder: str, phases: Phases = QUIET) -> list[Forecast]:
    """The forecasts for a run that is not made."""
    found = adapters(folder)
    with phases.doing(f"reading {config.data}"):
        splits = read_data(config)
    task = config.build_task()
    with phases.doing(f"opening {config.model}"):
        session = open_session(config, task.order(config.model, task.labels(splits.train)))
    session.phases = phases
    settle_length(session, splits.train)
    return forecast(session, splits.train, found)


def best(session: Session, rows: Any, folder: str) -> Forecast:
    """The adapter of a library that is predicted to be the best start."""
    told = [one for one in forecast(session, rows, adapters(folder)) if one.folder is not None]
    if told[0].refused is not None:
        raise InputError(f"no adapter in {folder} fits this run: {told[0].refused}")
    return told[0]


@contextmanager
def standing(session: Session, folder: Path) -> Iterator[None]:
    """An adapter's body on the base, for a while."""
    bodies.place(session.model, folder, _NAME)
    activate(session.model, _NAME)
    try:
        yield
    finally:
        detach(session.model, _NAME)


def _scores(session: Session, encoded: Encoded) -> tuple[float, float | None]:
    found = _vectors(session, encoded)
    if found is None:
        return -_loss(session, encoded), None
    values, labels = found
    return logme(values, labels), _probe(values, labels)


def _vectors(session: Session, encoded: Encoded) -> tuple[np.ndarray, np.ndarray] | None:
    """(n, width) and (n,), of tasks that give each example one label."""
    labels = [example.get("labels") for example in encoded.examples]
    if not session.task.one_vector or not all(isinstance(one, int) for one in labels):
        return None
    found = features.extract(
        session.model,
        encoded.examples,
        session.collate,
        batch_size=session.task.eval_batch,
        autocast=session.config.autocast,
    )
    return None if found is None else (found.values.numpy(), np.array(labels))


def _probe(values: np.ndarray, labels: np.ndarray) -> float | None:
    """Accuracy of a linear probe on folds that it was not fitted on."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, known[counts >= _FOLDS])
    if len(set(labels[kept])) < 2:
        return None
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=float(values.shape[1])))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    return float(cross_val_score(probe, values[kept], labels[kept], cv=folds).mean())


@torch.no_grad()
def _loss(session: Session, encoded: Encoded) -> float:
    """Of the examples, with the adapter as it is; less is better."""
    model, total = session.model.eval(), 0.0
    device = next(model.parameters()).device
    for part in batches(encoded.examples, session.config.batch_size):
        with precision(device, session.config.autocast):
            total += float(session.task.loss(model, on(session.collate(part), device))[0]) * len(
                part
            )
    return total / len(encoded.examples)
