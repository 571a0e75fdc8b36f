"""What is printed at any width: no number is cut, and none is broken in its middle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trimtab.capabilities import HEAD
from trimtab.cli.table import print_result, show


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.0211, "high": value + 0.0189}


METRICS: dict[str, Any] = {
    "metric": "accuracy",
    "method": "multitask-prompt",
    "test": interval(0.9412),
    "baselines": {"base": interval(0.5012), "head": interval(0.8123)},
    "baseline_costs": {
        "base": {"trainable": 0, "seconds": 0.0, "bytes": 0},
        "head": {"trainable": 1155, "seconds": 12.3, "bytes": 4620},
    },
    "trainable": 2_271_321_600,
    "total": 2_271_321_600,
    "train_seconds": 123_450.6,
    "probe_seconds": 3.0,
    "best_step": 44,
    "steps": 88,
    "planned_steps": 176,
    "adapter_bytes": 9_085_286_400,
    "gain_over": {"base": interval(0.44), "head": interval(0.001)},
    "notes": ["train: 1,234 texts (13.1%) are longer than 128 tokens and were cut; a higher one"],
}
NUMBERS = {
    *("0.501 [0.480, 0.520]", "0.812 [0.791, 0.831]", "0.941 [0.920, 0.960]", "1,155 (0.00005%)"),
    *("44", "176,", "88"),
    *("2,271,321,600 (100.00%)", "123453.6", "8664.40 MiB", "4.5 KiB", "+0.440", "1,234", "13.1%"),
}


def lines(width: int, printed: Any) -> list[str]:
    """What a terminal of this width shows."""
    file = io.StringIO()
    printed(Console(file=file, width=width, force_terminal=True, color_system=None))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [48, 79, 80, 100, 200])
def test_a_result_keeps_its_numbers_whole(width: int) -> None:
    shown = lines(width, lambda console: print_result(METRICS, Path("runs/reviews"), console))
    assert max(map(len, shown)) <= width
    text = " ".join(shown)
    assert {one for one in NUMBERS if one not in text} == set()
    assert "…" not in text


def test_a_usual_result_is_a_table_at_80_columns() -> None:
    usual = {**METRICS, "trainable": 75_267, "total": 22_713_216, "adapter_bytes": 303_104}
    usual |= {"train_seconds": 61.4, "method": "lora"}
    shown = lines(80, lambda console: print_result(usual, Path("runs/reviews"), console))
    assert any(line.split()[:3] == ["lora", "0.941", "[0.920,"] for line in shown)
    assert any("trained" in line and "on disk" in line for line in shown)


def test_columns_go_before_rows_become_blocks() -> None:
    head = ("method", "words", "number")
    rows = [("lora", "many words that may be left out", "1,234,567")]
    gone: list[list[str]] = []

    def printed(console: Console) -> None:
        gone.append(show(console, head, rows, drop=("words",)))

    wide, narrow, least = (lines(width, printed) for width in (80, 25, 14))
    assert gone == [[], ["words"], []]
    assert any("many words" in line and "1,234,567" in line for line in wide)
    assert any("lora" in line and "1,234,567" in line for line in narrow)
    assert not any("many" in line for line in narrow)
    assert "1,234,567" in " ".join(least)


def test_words_are_wrapped_and_numbers_are_not() -> None:
    row = ["lora", "additive", "all-linear", "Linear, Conv1D, Embedding, Conv1d, Conv2d, fused"]
    row += ["merged, stacked, routed, mixed", "all", "–", "LORA", "1,234,567*", "0.001"]
    shown = lines(150, lambda console: show(console, HEAD, [row], words=("acts on", "can be")))
    assert max(map(len, shown)) <= 150
    assert any("1,234,567*" in line and "0.001" in line for line in shown)
    assert any("Conv2d" in line and "lora" not in line for line in shown)
