"""Metrics by name: `METRICS["macro_f1"]`, `METRICS["recall_at_7"]`, with intervals and paired
differences. The libraries that compute them come with the extra `tasks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from trimtab.core.errors import InputError, nearest
from trimtab.evaluate.metrics.labels import LABELS
from trimtab.evaluate.metrics.labels import by_label as by_label
from trimtab.evaluate.metrics.metric import Metric as Metric
from trimtab.evaluate.metrics.metric import difference as difference
from trimtab.evaluate.metrics.metric import interval as interval
from trimtab.evaluate.metrics.numbers import NUMBERS
from trimtab.evaluate.metrics.numbers import naive_scale as naive_scale
from trimtab.evaluate.metrics.ranking import AT, RANKING
from trimtab.evaluate.metrics.text import TEXT
from trimtab.evaluate.metrics.vision import VISION

_USUAL = (1, 5, 10)


class _Metrics(Mapping[str, Metric]):
    """By name; those "at k" for any k, of which the usual ones are listed."""

    def __init__(self) -> None:
        listed = [*LABELS, *NUMBERS, *TEXT, *RANKING, *VISION]
        listed += [at(k) for at in AT.values() for k in _USUAL]
        self._listed = {metric.name: metric for metric in listed}

    def __getitem__(self, name: str) -> Metric:
        found = self._found(name)
        if found is None:
            raise InputError(f"no metric is called {name!r}; {nearest(name, self._listed)}")
        return found

    def __contains__(self, name: object) -> bool:
        return self._found(str(name)) is not None

    def _found(self, name: str) -> Metric | None:
        at = re.fullmatch(rf"({'|'.join(AT)})_([1-9][0-9]{{0,8}})", name)
        return AT[at[1]](int(at[2])) if at else self._listed.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)


METRICS: Mapping[str, Metric] = _Metrics()
