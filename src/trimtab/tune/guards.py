"""Warnings that name a cure, told before training begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from trimtab.core import registry
from trimtab.core.adapter import Adapter
from trimtab.core.counts import percent, summary
from trimtab.core.walk import walk
from trimtab.tune.folder import OWN
from trimtab.tune.session import Session

_FAR = 30  # times the method's own learning rate, or that part of it
_UNEVEN = 10  # times as many rows of one label as of another
_LARGE = 0.1  # of the model's parameters
_FEW = 0.1  # of the linear maps


def warnings(session: Session, adapter: Adapter, rows: Any) -> Iterator[str]:
    """What a careful colleague would say of this run, its adapter on the model."""
    yield from _rate(session)
    yield from _uneven(session, rows)
    if not session.config.selects:
        yield from _large(session)
        yield from _untouched(session, adapter)


def _rate(session: Session) -> Iterator[str]:
    config, own = session.config, registry.lookup(session.config.method).learning_rate
    if config.lr is not None and not own / _FAR <= config.lr <= own * _FAR:
        side = "above" if config.lr > own else "below"
        yield (
            f"the learning rate {config.lr:g} is far {side} what {config.method} is known to need "
            f"({own:g}): leave --lr out, or take one nearer to it"
        )


def _uneven(session: Session, rows: Any) -> Iterator[str]:
    given = list(rows["label"]) if "label" in rows.column_names else []
    weights = getattr(session.task, "weights", None)
    if not given or not isinstance(given[0], str) or weights == "balanced":
        return
    counted = Counter(given).most_common()
    (most, many), (least, few) = counted[0], counted[-1]
    if many >= _UNEVEN * few:
        cure = "; --task-arg weights=balanced lets both count alike" if weights else ""
        yield f"the label {most!r} has {many:,} rows of train and {least!r} has {few:,}{cure}"


def _large(session: Session) -> Iterator[str]:
    counted = summary(session.model, OWN)
    share = counted.trainable / counted.total
    if share > _LARGE:
        yield (
            f"{session.config.method} trains {percent(share)} of the model: a lower --rank, or "
            "fewer sites with --target, keeps an adapter small"
        )


def _untouched(session: Session, adapter: Adapter) -> Iterator[str]:
    """Only where somebody said where to act: methods have places of their own."""
    if session.config.target is None:
        return
    maps = [name for name, module in walk(session.model) if _is_map(module)]
    touched = {site for site, _ in adapter.deltas()}
    count = sum(name in touched for name in maps)
    if maps and 0 < count < _FEW * len(maps):
        yield (
            f"--target {session.config.target} reaches {count} of the model's {len(maps)} linear "
            "maps: all-linear reaches all but the head"
        )


def _is_map(module: Any) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")
