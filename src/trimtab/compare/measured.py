"""What a finished run is like in use: how far it overfits, how fast it answers, what it forgot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trimtab import activate, adapt
from trimtab.core.adapter import record
from trimtab.core.errors import TrimtabError
from trimtab.evaluate import forgetting
from trimtab.evaluate.drawn import drawn
from trimtab.evaluate.metrics import METRICS, interval
from trimtab.evaluate.predict import on, precision
from trimtab.store import load
from trimtab.store.files import write_json
from trimtab.tune import hardware, positions
from trimtab.tune.folder import Run
from trimtab.tune.session import Session, open_session, read_data

NAME = "measured.json"
FAILED = "not-measured.json"
_ROWS = 1000  # of train, to see how far it overfits
_ROUNDS = 21


def measure(folder: str, runs: list[str], probe: str | None) -> None:
    """Writes `measured.json` into each run's folder, or why it could not be measured; they stay in
    one process, for what it takes is not what is measured."""
    for one in runs:
        try:
            measure_run(one, probe)
        except (TrimtabError, RuntimeError) as error:
            write_json(Path(one) / FAILED, {"error": str(error)})
        else:
            (Path(one) / FAILED).unlink(missing_ok=True)
    write_json(Path(folder) / NAME, {"runs": len(runs)})


def measure_run(folder: str, probe: str | None) -> None:
    """Of one run."""
    run = Run(Path(folder))
    config = run.finished()
    assert config.labels is not None
    session = open_session(config, config.labels)
    lines = forgetting.lines(probe)
    before = forgetting.ability(session, lines)
    base = copy.deepcopy(session.model)
    load(session.model, run.adapter)
    active = record(session.model).switch.composition
    after = forgetting.ability(session, lines)
    activate(session.model, None)
    without = forgetting.ability(session, lines)
    activate(session.model, active)
    if config.first_position:
        positions.narrow(session.model)
        positions.narrow(base)
    splits = read_data(config)
    rows = drawn(splits.train, _ROWS, config.seed)
    write_json(
        run.path / NAME,
        {
            "train": _on_train(session, rows),
            "forgetting": forgetting.told(before, after, without),
            **_latency(session, base, splits.test),
        },
    )


def _on_train(session: Session, rows: Any) -> dict[str, Any]:
    answers = session.answers(session.outputs(session.encode(rows)), rows)
    metric = METRICS[session.task.metric]
    return interval(metric, answers, session.references(rows), seed=session.config.seed).as_dict()


def _latency(session: Session, base: Any, rows: Any) -> dict[str, Any]:
    """Milliseconds of one prediction: the median of alternating calls, on the test example of
    middling length; and how many tokens it reads."""
    encoded = session.encode(rows)
    example = encoded.examples[len(encoded.examples) // 2]
    batch = on(session.collate([example]), next(session.model.parameters()).device)
    models = {"base": base, "unmerged": session.model}
    merged, why = _merged(session)
    if merged is not None:
        models["merged"] = merged
    calls = {name: _ask(session, model.eval(), batch) for name, model in models.items()}
    took = hardware.measure(calls, rounds=_ROUNDS)
    return {"milliseconds": took, "not_merged": why, "tokens": int(example["length"])}


def _ask(session: Session, model: Any, batch: Any) -> Callable[[], object]:
    """A call of the model as a user makes it."""

    @torch.no_grad()
    def call() -> object:
        with precision(next(model.parameters()).device, session.config.autocast):
            return session.task.ask(model, batch, session.processor)

    return call


def _merged(session: Session) -> tuple[Any, str | None]:
    """A copy with the adapter in the base's weights, or why there is none."""
    if session.config.selects:
        return None, "it trains the base's own weights: there is nothing to merge"
    other = copy.deepcopy(session.model)
    try:
        adapt.merge(other)
    except TrimtabError as error:
        return None, str(error)
    return other, None
