"""Train, validation and test: made where absent, checked against each other, described in notes."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import InputError, nearest
from trimtab.data.columns import Column, printable
from trimtab.data.kinds import KINDS
from trimtab.data.rows import SHOWN, Rows
from trimtab.data.table import Fault

if TYPE_CHECKING:
    import datasets

Names = Sequence[tuple[str, ...]]  # the labels of each row

ENOUGH = 10  # rows of a class of which a tenth is at least one


@dataclass(frozen=True)
class Splits:
    """A data set for one task. The columns are the canonical names alone; what their cells hold
    follows from their kinds.

    `origin` is the source as it was given. `notes` are sentences for people about what was done:
    a split made, rows skipped, texts that train shares with the held-out splits.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    origin: str
    notes: tuple[str, ...]


def hold_out(
    rows: Rows, absent: Sequence[str], label: str | None, seed: int, known_by: Sequence[str] = ()
) -> tuple[dict[str, Rows], str]:
    """Train without a tenth for each of the `absent` splits, these splits, and a note.

    Strata are the classes where each row has one and each class enough rows, else all is one
    stratum. Either way the first row drawn with a label stays in train, so that no held-out label
    is unseen. Rows that are alike in the columns `known_by` stay together, on one side, unless too
    few of them are different: then the note says that they are not.
    """
    apart = _drawn(rows, _alike_rows(rows, known_by), absent, label, seed)
    drawn = apart or _drawn(rows, _alike_rows(rows, ()), absent, label, seed)
    if drawn is None:
        raise InputError(
            f"{rows.where} has {len(rows)} rows, too few to hold some out for "
            f"{' and '.join(absent)}; give these splits as files, or more rows"
        )
    taken, stratified = drawn
    parts = {split: _take(rows, chosen) for split, chosen in taken.items()}
    parts["train"] = _take(rows, set(range(len(rows))).difference(*taken.values()))
    note = _held_out_note(rows, parts, absent, label if stratified else None, seed)
    few = " Too few of them are different to keep rows that are alike on one side."
    return parts, note if apart else note + few


def _drawn(
    rows: Rows, alike: Mapping[int, list[int]], absent: Sequence[str], label: str | None, seed: int
) -> tuple[dict[str, set[int]], bool] | None:
    """Split -> its rows, and whether each class gives its share; None where a split stays empty."""
    rng = random.Random(seed)
    order = list(range(len(rows)))
    rng.shuffle(order)
    order = [i for i in order if i in alike]
    labels = rows.labels(label) if label else [()] * len(rows)
    theirs = {i: tuple(name for j in alike[i] for name in labels[j]) for i in order}
    one_each = label is not None and rows.kind(label) in ("label", "text")
    stratified = one_each and min(Counter(labels[i] for i in order).values()) >= ENOUGH
    taken: dict[str, set[int]] = {split: set() for split in absent}
    done = 0
    for stratum in _strata(order, labels, stratified):
        count = sum(len(alike[i]) for i in stratum)
        share = _tenth(done + count) - _tenth(done)  # rounding evens out over the strata
        _draw(stratum, theirs, alike, taken, share)
        done += count
    if not all(taken.values()):
        return None
    return {name: {j for i in some for j in alike[i]} for name, some in taken.items()}, stratified


def _alike_rows(rows: Rows, names: Sequence[str]) -> dict[int, list[int]]:
    """The first row of each kind -> all of its kind. Rows with nothing there are of no kind."""
    first: dict[Hashable, int] = {}
    found: dict[int, list[int]] = {}
    known = keys(rows, names) if names else itertools.repeat((), len(rows))
    for i, key in enumerate(known):
        kind: Hashable = key if isinstance(key, tuple) and any(key) else i
        found.setdefault(first.setdefault(kind, i), []).append(i)
    return found


def _strata(order: list[int], labels: Names, stratified: bool) -> list[list[int]]:
    if not stratified:
        return [order]
    groups: dict[tuple[str, ...], list[int]] = {}
    for i in order:
        groups.setdefault(labels[i], []).append(i)
    return [group for _, group in sorted(groups.items())]


def _tenth(n: int) -> int:
    """What is held out of n rows for each split that is made."""
    return (n + 5) // 10


def _draw(
    stratum: list[int],
    labels: Mapping[int, tuple[str, ...]],
    alike: Mapping[int, list[int]],
    taken: dict[str, set[int]],
    share: int,
) -> None:
    """Moves `share` rows of the stratum into each split that is made, or fewer, where those that
    are alike do not fit in."""
    seen: set[str] = set()
    free = []
    for i in stratum:
        if seen.issuperset(labels[i]):
            free.append(i)
        seen.update(labels[i])
    for chosen in taken.values():
        room, left = share, []
        for i in free:
            fits = len(alike[i]) <= room
            room -= len(alike[i]) if fits else 0
            (chosen.add if fits else left.append)(i)
        free = left


def _take(rows: Rows, chosen: set[int]) -> Rows:
    return rows.keep([i in chosen for i in range(len(rows))])


def _held_out_note(
    rows: Rows, parts: dict[str, Rows], absent: Sequence[str], label: str | None, seed: int
) -> str:
    made = " and ".join(f"{split} ({len(parts[split]):,} rows)" for split in absent)
    how = f"in equal shares of each {label}" if label else "at random"
    return f"Held out of the {len(rows):,} rows of {rows.where}, {how}: {made}; seed {seed}."


def refuse_single_label(train: Rows, label: str) -> None:
    """A task with one label has nothing to learn: an `InputError`."""
    seen = set(train.columns[label])
    if len(seen) == 1:
        raise InputError(
            f"{train.where} has one label only: {seen.pop()!r} in all {len(train):,} rows; "
            "at least two are needed to learn a difference"
        )


def refuse_own_labels(train: Rows, label: str) -> None:
    """Where most rows have a label of their own, nothing can be held out, and another column is
    meant: an `InputError`."""
    counts = Counter(train.columns[label])
    once = [value for value, n in counts.items() if n == 1]
    if len(train) >= 2 * ENOUGH and len(once) > len(train) / 2:
        shown = " and ".join(repr(printable(value)) for value in once[:2])
        raise InputError(
            f"{train.where} has {len(counts):,} different labels in {len(train):,} rows, most of "
            f"them once, such as {shown}: is this the label, and not the text or a number? Say "
            "which columns are meant with --column text=NAME and --column label=NAME"
        )


def rare_notes(train: Rows, label: str) -> tuple[str, ...]:
    """A sentence on each label that occurs once beside labels of many rows: is it mistyped?"""
    counts = Counter(train.columns[label])
    common = [value for value, n in counts.items() if n >= ENOUGH]
    once = [value for value, n in counts.items() if n == 1] if common else []
    return tuple(
        f"The {label} {printable(value)!r} occurs once in {len(train):,} rows; "
        f"{nearest(value, sorted(common))}."
        for value in once[:SHOWN]
    )


def without_unseen(part: Rows, train: Rows, label: str) -> Rows:
    """`part` with a fault in place of each row that has a label which is not in `train`."""
    seen = {name for names in train.labels(label) for name in names}
    new = [next((n for n in names if n not in seen), None) for names in part.labels(label)]
    unseen = [(line, name) for line, name in zip(part.lines, new, strict=True) if name is not None]
    # the nearest labels are dear to find among thousands, and only the first faults are shown
    shown = islice(dict.fromkeys(name for _, name in unseen), SHOWN)
    near = {name: f"; {nearest(name, sorted(seen))}" for name in shown}
    faults = [
        Fault(line, f"{label} {name!r} does not occur in {train.where}{near.get(name, '')}")
        for line, name in unseen
    ]
    return part.keep([name is None for name in new], faults)


def shared_note(split: str, part: Rows, train: Rows, columns: Sequence[Column]) -> tuple[str, ...]:
    """A warning where `train` has rows with the same text, image or sound as rows of a held-out
    split."""
    names = telling(part, columns)
    learned = set(keys(train, names))
    n = sum(key in learned for key in keys(part, names))
    if not n or not names:
        return ()
    return (
        f"{n:,} of the {len(part):,} rows of {split} {'has' if n == 1 else 'have'} the same "
        f"{' and '.join(names)} as a row of train, so its scores flatter.",
    )


def asked(rows: Rows, columns: Sequence[Column]) -> list[str]:
    """Those of them that are no answers: by which rows are held out together."""
    return telling(rows, [column for column in columns if not column.answer])


def telling(rows: Rows, columns: Sequence[Column]) -> list[str]:
    """The columns by which a row is known again."""
    return [c.name for c in columns if KINDS[c.kind].key and c.name in rows.columns]


def keys(rows: Rows, names: Sequence[str]) -> Iterator[Hashable]:
    """What each row is known by: the same for two that have the same in these columns."""
    kinds = [KINDS[rows.kind(name)] for name in names]
    for row in zip(*(rows.columns[name] for name in names), strict=True):
        pairs = zip(kinds, row, strict=True)
        yield tuple(None if cell is None else kind.key(cell) for kind, cell in pairs if kind.key)


def as_dataset(rows: Rows) -> datasets.Dataset:
    """The rows as a `datasets.Dataset`, its types those of the columns' kinds."""
    import datasets

    features, columns = {}, {}
    for name, cells in rows.columns.items():
        features[name] = KINDS[rows.kind(name)].feature(cells)
        columns[name] = _alike(cells)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _alike(cells: list[Any]) -> list[Any]:
    """Paths among bytes are read, since a column has one type."""
    if not any(isinstance(cell, bytes) for cell in cells):
        return cells
    return [Path(cell).read_bytes() if isinstance(cell, str) else cell for cell in cells]
