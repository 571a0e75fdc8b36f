"""What may be left out of a data set, or mended in it, before a model learns from it.

| name | what |
|---|---|
| `encoding` | texts that were decoded by the wrong table, such as "schÃ¶n", mended by ftfy |
| `empty` | rows whose texts hold next to nothing |
| `duplicates` | rows of train that are there once more, with the same label |
| `overlap` | rows of train that a held-out split has, too |

Held-out rows are what a model is measured on: only their encoding is mended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab.core.errors import InputError, nearest
from trimtab.data.columns import Column
from trimtab.data.kinds import KINDS
from trimtab.data.rows import Rows
from trimtab.data.splits import keys, telling

NEARLY_EMPTY = 2  # letters or digits, below which a text says nothing

AS_TEXT: dict[str, Callable[[Any], str]] = {
    "text": str,
    "words": " ".join,
    "messages": lambda cell: "\n".join(one["content"] for one in cell),
}

Parts = dict[str, Rows]
Done = tuple[Parts, tuple[str, ...]]  # and notes


def tidy(parts: Parts, columns: Sequence[Column], wanted: Sequence[str]) -> Done:
    """The splits after the steps that are `wanted`, in the table's order whatever theirs is."""
    for name in wanted:
        if name not in STEPS:
            raise InputError(f"--clean {name}: no such step; {nearest(name, STEPS)}")
    notes: tuple[str, ...] = ()
    for name in STEPS:
        if name in wanted:
            parts, more = STEPS[name](parts, columns)
            notes += more
    return parts, notes


def nearly_empty(part: Rows, columns: Sequence[Column]) -> list[bool]:
    """Of each row, whether a text that the task needs says next to nothing."""
    needed = [
        (AS_TEXT[part.kind(c.name)], part.columns[c.name])
        for c in columns
        if c.required and c.kind in AS_TEXT and c.name in part.columns
    ]
    return [
        any(len(re.findall(r"\w", text(cells[i]))) < NEARLY_EMPTY for text, cells in needed)
        for i in range(len(part))
    ]


def _encoding(parts: Parts, columns: Sequence[Column]) -> Done:
    try:
        from ftfy import fix_text
    except ModuleNotFoundError:
        raise InputError(
            "--clean encoding is done by ftfy, which is not installed: pip install 'trimtab[tasks]'"
        ) from None
    out, changed = dict(parts), 0
    for split, part in parts.items():
        cells: dict[str, list[Any]] = dict(part.columns)
        for name in (c.name for c in columns if c.kind == "text" and c.name in cells):
            mended = [fix_text(cell, unescape_html=False) for cell in cells[name]]
            changed += sum(a != b for a, b in zip(mended, cells[name], strict=True))
            cells[name] = mended
        out[split] = replace(part, columns=cells)
    return out, _told(changed, "text", "whose encoding was broken", "mended")


def _empty(parts: Parts, columns: Sequence[Column]) -> Done:
    return _without(parts, nearly_empty(parts["train"], columns), "with next to nothing in them")


def _duplicates(parts: Parts, columns: Sequence[Column]) -> Done:
    train = parts["train"]
    seen: set[Hashable] = set()
    again = []
    for i, key in enumerate(keys(train, telling(train, columns))):
        whole = (key, *(repr(train.columns[n][i]) for n in _labelled(train, columns)))
        again.append(whole in seen)
        seen.add(whole)
    return _without(parts, again, "that came before")


def _overlap(parts: Parts, columns: Sequence[Column]) -> Done:
    train = parts["train"]
    names = telling(train, columns)
    held_out = {
        key
        for split, part in parts.items()
        if split != "train" and set(names) <= set(part.columns)
        for key in keys(part, names)
    }
    known = [bool(names) and key in held_out for key in keys(train, names)]
    return _without(parts, known, "known to a held-out split")


def _labelled(part: Rows, columns: Sequence[Column]) -> list[str]:
    """The columns that say what is right: all that a row is not known again by."""
    return [c.name for c in columns if c.name in part.columns and not KINDS[c.kind].key]


def _without(parts: Parts, out: Sequence[bool], which: str) -> Done:
    train = parts["train"]
    kept = train.keep([not one for one in out], train.faults)
    if not len(kept) and len(train):
        raise InputError(f"{train.where}: all {len(train):,} rows are rows {which}: --clean fewer")
    return {**parts, "train": kept}, _told(sum(out), "row", f"of train {which}", "left out")


def _told(count: int, what: str, which: str, done: str) -> tuple[str, ...]:
    if not count:
        return ()
    return (
        f"{count:,} {what}{'s' * (count != 1)} {which} {'was' if count == 1 else 'were'} {done}.",
    )


STEPS: Mapping[str, Callable[[Parts, Sequence[Column]], Done]] = {
    "encoding": _encoding,
    "empty": _empty,
    "duplicates": _duplicates,
    "overlap": _overlap,
}
