"""A model as a column of blocks: coloured by how sensitive each site is, marked by what was spent.

The page is self-contained and has no script. Blocks stand as in the model, the last above; within
one, sites stand side by side, the same kind always in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.compare.blocks import place
from trimtab.store.files import write_text

PALE, DEEP = (236, 242, 242), (31, 111, 120)  # the report's teal, and next to nothing of it
WIDTH, HEIGHT, GAP, LEFT = 96, 40, 6, 64
_DARK = 0.55  # from this share of the deepest on, words are white


@dataclass(frozen=True)
class Cell:
    """A site: what it is worth, None where nothing was measured; what was spent there; in words."""

    site: str
    sensitivity: float | None
    spent: float
    told: str


@dataclass(frozen=True)
class Box:
    """A cell as it is drawn."""

    x: int
    y: int
    fill: str
    ink: str
    bar: float
    words: str
    title: str


@dataclass(frozen=True)
class Column:
    """All boxes, the words beside them, and the size of the drawing."""

    boxes: tuple[Box, ...]
    rows: tuple[tuple[str, int], ...]
    outside: tuple[tuple[str, int], ...]
    kinds: tuple[tuple[str, int], ...]
    width: int
    height: int


def arrange(cells: Sequence[Cell]) -> Column:
    """Where each cell stands, and its colours."""
    top = max((cell.sensitivity or 0.0 for cell in cells), default=0.0) or 1.0
    most = max((cell.spent for cell in cells), default=0.0) or 1.0
    found = [(cell, place(cell.site)) for cell in cells]
    kinds = list(dict.fromkeys(at.kind for _, at in found if at))
    named = {(at.stack, at.block) for _, at in found if at}
    blocks = sorted(named, reverse=True)
    stacks = {stack for stack, _ in named}
    rows = [f"{stack} {block}" if len(stacks) > 1 else str(block) for stack, block in blocks]
    outside = [cell for cell, at in found if at is None]
    boxes = []
    for cell, at in found:
        column = kinds.index(at.kind) if at else 0
        row = blocks.index((at.stack, at.block)) if at else len(blocks) + outside.index(cell)
        boxes.append(_box(cell, column, row, top, most))
    return Column(
        tuple(boxes),
        tuple((name, _middle(row)) for row, name in enumerate(rows)),
        tuple((one.site, _middle(len(rows) + row)) for row, one in enumerate(outside)),
        tuple((kind, LEFT + i * (WIDTH + GAP) + WIDTH // 2) for i, kind in enumerate(kinds)),
        LEFT + max(4, len(kinds)) * (WIDTH + GAP),
        _y(len(rows) + len(outside)),
    )


def _y(row: int) -> int:
    return 34 + row * (HEIGHT + GAP)


def _middle(row: int) -> int:
    return _y(row) + HEIGHT // 2


def _box(cell: Cell, column: int, row: int, top: float, most: float) -> Box:
    share = (max(cell.sensitivity or 0.0, 0.0) / top) ** 0.5  # what is small is seen, too
    mixed = [round(p + share * (d - p)) for p, d in zip(PALE, DEEP, strict=True)]
    known = "" if cell.sensitivity is None else f", sensitivity {cell.sensitivity:.3g}"
    return Box(
        LEFT + column * (WIDTH + GAP),
        _y(row),
        f"rgb({mixed[0]},{mixed[1]},{mixed[2]})",
        "#ffffff" if share > _DARK else "#23282d",
        round((WIDTH - 8) * cell.spent / most, 1),
        cell.told,
        f"{cell.site}: {cell.told or 'nothing'}{known}",
    )


def draw(cells: Sequence[Cell], title: str, about: str, spent: str, path: Path) -> None:
    """Write the page; `spent` says what the bars are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("column.html.j2").render(
        column=arrange(cells),
        title=title,
        about=about,
        spent=spent,
        beside=LEFT + WIDTH + GAP,
        width=WIDTH,
        height=HEIGHT,
        measured=any(cell.sensitivity is not None for cell in cells),
    )
    write_text(path, page)
