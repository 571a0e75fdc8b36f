"""`trimtab methods NAME`: what is known of one method, and what is said while it is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from trimtab.capabilities import rows

Cli = Callable[..., Any]


def test_a_method_in_a_real_process(real: Cli) -> None:
    outcome = real("methods", "lora", "t-few")
    assert (outcome.code, outcome.err) == (0, "probing lora …\n")
    shown = outcome.out.splitlines()
    assert "parameters: 12,288 (Linear, 768)" in shown
    assert "can be: merged, stacked, routed, mixed" in shown
    assert "HF PEFT: LORA" in shown
    assert any(line.startswith("  alpha: 16.0   numerator of the scale") for line in shown)
    assert any(line.startswith("use: trimtab.attach") for line in shown)
    assert "houlsby" not in outcome.out


def test_what_is_named_alone_is_probed(cli: Cli) -> None:
    outcome = cli("methods", "ia3", "distill", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert list(json.loads(outcome.out)) == ["ia3", "distill"]
    outcome = cli("methods", "lroa")
    assert outcome.code == 2
    assert "no method or recipe is called 'lroa'; nearest: 'road', 'lora'" in outcome.err


def test_a_row_does_not_hang_on_the_others() -> None:
    alone = dict(rows(["fish"]))
    assert dict(rows(["lora", "fish"]))["fish"] == alone["fish"]
