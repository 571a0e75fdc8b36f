"""What there is to know of a data set before a model is trained on it.

Everything is found on the rows as a run would read them, and nothing is refused: a broken row, a
label that cannot be learnt, or a column that is missing is one more finding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import InputError
from trimtab.data import clips, media
from trimtab.data.cleaning import AS_TEXT, nearly_empty
from trimtab.data.columns import Column
from trimtab.data.kinds import KINDS
from trimtab.data.loading import Arrange, divide, label_of, read_parts
from trimtab.data.rows import Ask, Rows
from trimtab.data.sources import SPLITS
from trimtab.data.splits import ENOUGH, keys, telling, without_unseen
from trimtab.data.table import Fault

if TYPE_CHECKING:
    import numpy as np

LEAST_SHARE = 0.01  # of the rows; a label below it is rare
PERCENTILES = (0, 50, 90, 95, 99, 100)
_BINS = 40

Count = Callable[[Sequence[str]], Sequence[int]]  # texts -> their lengths in tokens


@dataclass(frozen=True)
class Taken:
    """A column of the task, what it is taken for, and where it was found (None: nowhere)."""

    name: str
    kind: str
    required: bool
    found: str | None


@dataclass(frozen=True)
class Split:
    """One split. `made` where a run holds it out of train; then it has no faults of its own.

    `labels` are rows with each label; `duplicates` rows that are there once more; `empty` the lines
    of rows that say next to nothing; `shared` rows that train has, too.
    """

    name: str
    where: str
    unit: str
    rows: int
    made: bool
    faults: tuple[Fault, ...]
    labels: dict[str, int]
    duplicates: int
    empty: tuple[int, ...]
    shared: int


@dataclass(frozen=True)
class Lengths:
    """How long the cells of a column are, over all splits: percentile -> length, and a histogram of
    (from, to, rows). `over` is the share longer than `limit`, which would be cut."""

    column: str
    unit: str
    percentiles: dict[int, float]
    histogram: tuple[tuple[float, float, int], ...]
    limit: int | None = None
    over: float | None = None


@dataclass(frozen=True)
class Findings:
    """`problems` are what a run would refuse the data for; `rare` the rows of labels that are
    under-represented in train; `contradictions` the rows that train has with another label."""

    source: str
    columns: tuple[Taken, ...]
    unused: tuple[str, ...]
    splits: tuple[Split, ...]
    label: str | None
    rare: dict[str, int]
    contradictions: int
    lengths: tuple[Lengths, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def broken(self) -> int:
        """Rows that cannot be used."""
        return sum(len(split.faults) for split in self.splits)


def check(
    source: str,
    columns: Sequence[Column],
    *,
    names: Mapping[str, str] = {},
    seed: int = 0,
    count: Count | None = None,
    limit: int | None = None,
    fault: Ask | None = None,
    arrange: Arrange | None = None,
) -> Findings:
    """The findings on a file, folder or hub name. With `count`, texts are measured in tokens, of
    which the model takes `limit`.

    Raises `InputError` where there is nothing to look at: no such source, or no such column.
    """
    given, notes = read_parts(source, columns, names, fault, arrange)
    given = _with_unseen(given, columns)
    problems = []
    parts = {split: part.keep([True] * len(part)) for split, part in given.items()}
    try:
        parts, more = divide(parts, columns, seed, skip_bad_rows=True)
        notes += tuple(note for note in more if "flatter" not in note)
    except InputError as error:
        problems.append(str(error))
    train = given["train"]
    label = label_of(columns, train)
    known = {name: list(keys(part, telling(part, columns))) for name, part in parts.items()}
    splits = [
        _split(name, parts[name], given, known, columns, label) for name in SPLITS if name in parts
    ]
    return Findings(
        source,
        tuple(Taken(c.name, c.kind, c.required, train.found.get(c.name)) for c in columns),
        tuple(name for name in train.header if name not in train.found.values()),
        tuple(splits),
        label,
        _rare(parts["train"], label),
        _contradictions(parts["train"], known["train"], label),
        tuple(_lengths(parts, columns, count, limit)),
        tuple(problems),
        (*notes, *_rates(parts, columns)),
    )


def _with_unseen(parts: dict[str, Rows], columns: Sequence[Column]) -> dict[str, Rows]:
    """Rows whose label train has not are faults, too."""
    train = parts["train"]
    label = label_of(columns, train)
    out = dict(parts)
    for split, part in parts.items():
        if split != "train" and label in part.columns:
            known = without_unseen(part, train, label)
            faults = sorted((*part.faults, *known.faults), key=lambda fault: fault.line)
            out[split] = known.keep([True] * len(known), faults)
    return out


def _split(
    name: str,
    part: Rows,
    given: Mapping[str, Rows],
    known: Mapping[str, Sequence[Hashable]],
    columns: Sequence[Column],
    label: str | None,
) -> Split:
    own = Counter(known[name])
    learned = set(known["train"]) if name != "train" else set()
    labels = part.labels(label) if label in part.columns else []
    return Split(
        name,
        part.where,
        part.unit,
        len(part),
        name not in given,
        given[name].faults if name in given else (),
        dict(Counter(one for names in labels for one in names).most_common()),
        sum(n - 1 for n in own.values()),
        tuple(compress(part.lines, nearly_empty(part, columns))),
        sum(n for key, n in own.items() if key in learned),
    )


def _rare(train: Rows, label: str | None) -> dict[str, int]:
    if label not in train.columns:
        return {}
    counts = Counter(one for names in train.labels(label) for one in names)
    least = max(ENOUGH, LEAST_SHARE * len(train))
    return {name: n for name, n in counts.most_common() if n < least}


def _contradictions(train: Rows, known: Sequence[Hashable], label: str | None) -> int:
    """Rows whose like has another label: a person or a program was wrong, or both are right."""
    if label not in train.columns or not known:
        return 0
    seen: dict[Hashable, Counter[str]] = {}
    for key, cell in zip(known, train.columns[label], strict=True):
        seen.setdefault(key, Counter())[repr(cell)] += 1
    return sum(sum(found.values()) for found in seen.values() if len(found) > 1)


def _rates(parts: Mapping[str, Rows], columns: Sequence[Column]) -> Iterator[str]:
    """Recordings of several rates are brought to the model's, but do not sound alike after it."""
    for name in (column.name for column in columns if column.kind == "audio"):
        cells = (cell for part in parts.values() for cell in part.columns.get(name, ()) if cell)
        counts = Counter(map(media.sampling_rate, cells))
        if len(counts) > 1:
            told = ", ".join(f"{rate:,} ({n:,} rows)" for rate, n in counts.most_common())
            yield f"The {name} has several sampling rates: {told}."


# Lengths

_MEASURES: dict[str, tuple[str, Callable[[Any], float]]] = {
    "text": ("characters", len),
    "words": ("words", len),
    "messages": ("characters", lambda cell: sum(len(one["content"]) for one in cell)),
    "number": ("value", float),
    "numbers": ("values", len),
    "boxes": ("boxes", lambda cell: len(cell["boxes"])),
    "image": ("pixels of the longer side", lambda cell: max(media.size(cell))),
    "audio": ("seconds", media.seconds),
    "video": ("frames", clips.length),
}


def _lengths(
    parts: Mapping[str, Rows], columns: Sequence[Column], count: Count | None, limit: int | None
) -> list[Lengths]:
    found = []
    for column in columns:
        cells = [
            cell
            for part in parts.values()
            for cell in part.columns.get(column.name, ())
            if cell is not None and cell != KINDS[column.kind].empty
        ]
        if not cells or column.kind not in _MEASURES:
            continue
        if count is not None and column.kind in AS_TEXT:
            values = list(count([AS_TEXT[column.kind](cell) for cell in cells]))
            found.append(_measured(column.name, "tokens", values, limit))
        else:
            unit, measure = _MEASURES[column.kind]
            found.append(_measured(column.name, unit, [measure(cell) for cell in cells], None))
    return found


def _measured(column: str, unit: str, values: Sequence[float], limit: int | None) -> Lengths:
    import numpy as np

    array = np.asarray(values, dtype=float)
    percentiles = {p: round(float(np.percentile(array, p)), 3) for p in PERCENTILES}
    edges = _edges(array)
    counts, _ = np.histogram(np.clip(array, edges[0], edges[-1]), bins=edges)
    bins = zip(edges[:-1], edges[1:], counts, strict=True)
    histogram = tuple((round(float(a), 3), round(float(b), 3), int(n)) for a, b, n in bins)
    over = None if limit is None else round(float((array > limit).mean()), 6)
    return Lengths(column, unit, percentiles, histogram, limit, over)


def _edges(values: np.ndarray) -> np.ndarray:
    """Of the histogram's bins: as wide as whole numbers are apart, where these are counted. The
    last bin has all above, for a single long one would press the others into the first."""
    import numpy as np

    low, high = min(0.0, float(values.min())), float(np.percentile(values, 99.5))
    if (values == values.round()).all():
        width = max(1, math.ceil((high - low) / _BINS))
        return np.arange(low, high + width + 1, width)
    return np.linspace(low, high if high > low else low + 1, _BINS + 1)
