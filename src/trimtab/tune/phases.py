"""What takes its time beside training, told on stderr: a bar or a moving sign on a terminal, which
go when it is done, and a line where stderr is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track


class Phases:
    """Says one phase at a time; nothing at all when quiet."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet = quiet
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """A phase of unknown length."""
        if self.quiet:
            yield
        elif self.console.is_terminal:
            with self.console.status(f"{escape(what)} …"):
                yield
        else:
            self.console.print(f"{what} …", markup=False)
            yield

    def say(self, what: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(what, markup=False)

    def track(self, items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
        """A phase of a step an item; `total` says how many, where the items do not."""
        if self.quiet or not self.console.is_terminal:
            with self.doing(what):
                yield from items
        else:
            told = escape(what)
            yield from track(items, told, total, console=self.console, transient=True)


QUIET = Phases(quiet=True)
