"""What one sees of a run before and after it trains."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from trimtab.tune.phases import Phases


def watched(terminal: bool, quiet: bool = False) -> tuple[list[Any], str]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    phases = Phases(quiet, console)
    with phases.doing("opening [a] model"):
        pass
    return list(phases.track(range(3), "encoding")), file.getvalue()


def test_a_terminal_shows_what_is_done_and_how_far() -> None:
    items, text = watched(terminal=True)
    assert items == [0, 1, 2]
    assert "opening [a] model …" in text
    assert "encoding" in text
    assert "100%" in text
    assert "\x1b[?25l" in text  # it moves,
    assert text.endswith("\x1b[2K")  # and is gone in the end


def test_elsewhere_a_phase_is_a_line() -> None:
    assert watched(terminal=False) == ([0, 1, 2], "opening [a] model …\nencoding …\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_is_silent(terminal: bool) -> None:
    assert watched(terminal, quiet=True) == ([0, 1, 2], "")


def test_an_error_leaves_the_terminal_clean() -> None:
    file = io.StringIO()
    phases = Phases(console=Console(file=file, force_terminal=True, width=80))

    def fail() -> None:
        for _ in phases.track(range(3), "encoding"):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert file.getvalue().rstrip().endswith("\x1b[2K")
