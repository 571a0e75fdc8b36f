"""What a method was found to hold, law by law."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["holds", "not applicable", "broken", "not run"]


@dataclass(frozen=True)
class Row:
    """One law on one architecture. `why` is the reason, or what was found."""

    law: str
    architecture: str
    outcome: Outcome
    why: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.why}" if self.why else self.outcome


@dataclass
class Report:
    """The rows of one method."""

    method: str
    rows: list[Row] = field(default_factory=list)

    @property
    def broken(self) -> list[Row]:
        """What does not hold."""
        return self.of("broken")

    def of(self, outcome: Outcome) -> list[Row]:
        """The rows with this outcome."""
        return [row for row in self.rows if row.outcome == outcome]

    def raise_if_broken(self) -> None:
        """AssertionError with every row that is broken."""
        if self.broken:
            lines = [f"{row.law} on {row.architecture}: {row.why}" for row in self.broken]
            count = f"{len(lines)} of {len(self.rows)}"
            raise AssertionError("\n".join([f"{self.method}: {count} checks are broken", *lines]))

    def __str__(self) -> str:
        return "\n".join([self._headline(), *_lines(self.rows)])

    def _headline(self) -> str:
        held, open_ = len(self.of("holds")), len(self.of("not applicable"))
        counts = f"{held} hold, {open_} do not apply, {len(self.broken)} are broken"
        return f"{self.method}: of {len(self.rows)} checks {counts}"


def _lines(rows: Iterable[Row]) -> Iterable[str]:
    for row in rows:
        yield f"  {row.law:<14} {row.architecture:<20} {row}"
