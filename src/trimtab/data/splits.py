"""Train, validation and test: made where absent, checked against each other, described in notes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from trimtab.core.errors import InputError, nearest
from trimtab.data.columns import Column, printable
from trimtab.data.formats import Fault
from trimtab.data.rows import SHOWN, Rows

if TYPE_CHECKING:
    import datasets

ENOUGH = 10  # rows of a class of which a tenth is at least one


@dataclass(frozen=True)
class Splits:
    """A data set for one task. The columns are the canonical names alone; all values are `str`.

    `origin` is the source as it was given. `notes` are sentences for people about what was done:
    a split made, rows skipped, texts that train shares with the held-out splits.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    origin: str
    notes: tuple[str, ...]


def hold_out(
    rows: Rows, absent: Sequence[str], label: str | None, seed: int
) -> tuple[dict[str, Rows], str]:
    """Train without a tenth for each of the `absent` splits, these splits, and a note.

    Strata are the classes where each has enough rows, else all is one stratum. Either way the
    first row drawn of each class stays in train, so that no held-out label is unseen.
    """
    rng = random.Random(seed)
    order = list(range(len(rows)))
    rng.shuffle(order)
    labels = rows.columns[label] if label else [""] * len(rows)
    stratified = label is not None and min(Counter(labels).values()) >= ENOUGH
    taken: dict[str, set[int]] = {split: set() for split in absent}
    done = 0
    for stratum in _strata(order, labels, stratified):
        share = _tenth(done + len(stratum)) - _tenth(done)  # rounding evens out over the strata
        _draw(stratum, labels, taken, share)
        done += len(stratum)
    if not all(taken.values()):
        raise InputError(
            f"{rows.where} has {len(rows)} rows, too few to hold some out for "
            f"{' and '.join(absent)}; give these splits as files, or more rows"
        )
    parts = {split: _take(rows, chosen) for split, chosen in taken.items()}
    parts["train"] = _take(rows, set(order).difference(*taken.values()))
    return parts, _held_out_note(rows, parts, absent, label if stratified else None, seed)


def _strata(order: list[int], labels: Sequence[str], stratified: bool) -> list[list[int]]:
    if not stratified:
        return [order]
    return [group for _, group in sorted(_by_label(order, labels).items())]


def _by_label(order: list[int], labels: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i in order:
        groups.setdefault(labels[i], []).append(i)
    return groups


def _tenth(n: int) -> int:
    """What is held out of n rows for each split that is made."""
    return (n + 5) // 10


def _draw(
    stratum: list[int], labels: Sequence[str], taken: dict[str, set[int]], share: int
) -> None:
    """Moves `share` rows of the stratum into each split that is made."""
    guarded = {group[0] for group in _by_label(stratum, labels).values()}
    free = [i for i in stratum if i not in guarded]
    for n, chosen in enumerate(taken.values()):
        chosen.update(free[n * share : (n + 1) * share])


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
            "which columns are meant with --text-column and --label-column"
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
    """`part` with a fault in place of each row whose label is not in `train`."""
    seen = set(train.columns[label])
    known = [value in seen for value in part.columns[label]]
    lines = zip(part.lines, part.columns[label], strict=True)
    unseen = [(line, value) for line, value in lines if value not in seen]
    # the nearest labels are dear to find among thousands, and only the first faults are shown
    shown = islice(dict.fromkeys(value for _, value in unseen), SHOWN)
    near = {value: f"; {nearest(value, sorted(seen))}" for value in shown}
    faults = [
        Fault(line, f"{label} {value!r} does not occur in {train.where}{near.get(value, '')}")
        for line, value in unseen
    ]
    return part.keep(known, faults)


def shared_note(split: str, part: Rows, train: Rows, columns: Sequence[Column]) -> tuple[str, ...]:
    """A warning where `train` has rows with the same text as rows of a held-out split."""
    names = [c.name for c in columns if c.kind == "text" and c.name in part.columns]
    learned = set(_keys(train, names))
    n = sum(key in learned for key in _keys(part, names))
    if not n:
        return ()
    return (
        f"{n:,} of the {len(part):,} rows of {split} {'has' if n == 1 else 'have'} the same "
        f"{' and '.join(names)} as a row of train, so its scores flatter.",
    )


def _keys(rows: Rows, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(rows.columns[name] for name in names), strict=True)


def as_dataset(rows: Rows) -> datasets.Dataset:
    """The rows as a `datasets.Dataset` of strings."""
    import datasets

    features = datasets.Features({name: datasets.Value("string") for name in rows.columns})
    return datasets.Dataset.from_dict(rows.columns, features=features)
