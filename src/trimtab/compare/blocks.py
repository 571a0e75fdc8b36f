"""Where the parameters went: site names folded into a model's blocks and the kinds of site in them.

`bert.encoder.layer.3.attention.self.query` is block 3 and kind `attention.self.query`. No family of
models is named here: the first number in a name counts the blocks, as it does wherever a model
repeats itself in a `ModuleList`. A name without a number, or with nothing after it (`head.0`, a
layer of a `Sequential`), lies outside the blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MOST = 14  # more kinds, or more sites outside, are folded into one: a sheet of paper holds no more


@dataclass(frozen=True)
class Place:
    """Where a site is: the stack of blocks, the block's number in it, and the kind of site."""

    stack: str
    block: int
    kind: str


@dataclass(frozen=True)
class Kind:
    """One kind of site, and the trained parameters of each block (0 where it has none)."""

    name: str
    parameters: tuple[int, ...]

    @property
    def total(self) -> int:
        """Over all blocks."""
        return sum(self.parameters)


@dataclass(frozen=True)
class Layout:
    """All trained parameters: inside the blocks by kind, and outside of them by site."""

    blocks: tuple[int, ...]
    inside: tuple[Kind, ...]
    outside: tuple[tuple[str, int], ...]

    @property
    def total_inside(self) -> int:
        """Trained parameters in all blocks."""
        return sum(kind.total for kind in self.inside)

    @property
    def total_outside(self) -> int:
        """Trained parameters outside the blocks, such as the head's."""
        return sum(number for _, number in self.outside)


def place(name: str) -> Place | None:
    """Where the site of this name is; None outside the blocks.

    Numbers after the block's own, as of experts, become `*`: their sites add up.
    """
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if _is_number(part)), len(parts))
    if at >= len(parts) - 1:
        return None
    kind = ".".join("*" if _is_number(part) else part for part in parts[at + 1 :])
    return Place(".".join(parts[:at]), int(parts[at]), kind)


def arrange(sites: Sequence[tuple[str, int]]) -> Layout:
    """Fold sites into blocks and kinds, in the order in which the model has them."""
    inside: Counter[Place] = Counter()
    outside: Counter[str] = Counter()
    for name, number in sites:
        where = place(name)
        if where is None:
            outside[name] += number
        else:
            inside[where] += number
    blocks = tuple(sorted({where.block for where in inside}))
    return Layout(blocks, _kinds(inside, blocks), _outside(outside))


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()


def _kinds(inside: Counter[Place], blocks: tuple[int, ...]) -> tuple[Kind, ...]:
    one_stack = len({where.stack for where in inside}) == 1
    rows = dict.fromkeys((where.stack, where.kind) for where in inside)
    kinds = [
        Kind(
            kind if one_stack or not stack else f"{stack}: {kind}",
            tuple(inside[Place(stack, block, kind)] for block in blocks),
        )
        for stack, kind in rows
    ]
    if len(kinds) <= MOST:
        return tuple(kinds)
    largest = sorted(kinds, key=lambda kind: -kind.total)[: MOST - 1]
    shown = [kind for kind in kinds if kind in largest]
    rest = [kind for kind in kinds if kind not in largest]
    sums = tuple(map(sum, zip(*(kind.parameters for kind in rest), strict=True)))
    return (*shown, Kind(f"{len(rest)} other kinds", sums))


def _outside(outside: Counter[str]) -> tuple[tuple[str, int], ...]:
    largest_first = outside.most_common()
    if len(largest_first) <= MOST:
        return tuple(largest_first)
    shown, rest = largest_first[: MOST - 1], largest_first[MOST - 1 :]
    return (*shown, (f"{len(rest)} other sites", sum(number for _, number in rest)))
