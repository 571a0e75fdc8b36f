"""`trimtab methods --probe`: the methods held to the laws, from a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trimtab
from trimtab.core.registry import _methods


class Elsewhere(trimtab.LoRA):
    """A method that breaks the first law; not registered, so that no other test meets it."""

    def init(self, site: Any) -> Any:
        drawn = super().init(site)
        return {**drawn, "B": type(drawn["B"])(drawn["B"].value + 1)}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(_methods, "elsewhere", Elsewhere)
    return "elsewhere"


Cli = Callable[..., Any]


def test_in_a_terminal(cli: Cli, tmp_path: Path, broken: str) -> None:
    out = tmp_path / "table.json"
    asked = ["methods", "--probe", "--law", "start", "--architecture", "bert", "--out", str(out)]
    outcome = cli(*asked, "--method", "lora")
    assert outcome.code == 0
    assert "holds on 1 of 1  [start]" in outcome.out
    assert "lora, start: not tried -> holds on bert" in outcome.err
    outcome = cli(*asked, "--method", broken)
    assert outcome.code == 1
    assert "elsewhere: 1 broken" in outcome.out
    assert set(json.loads(out.read_text())) == {"lora", "elsewhere"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--law", "start"], "belong to --probe"),
        (["--probe", "--law", "strat"], "no law is called 'strat'; nearest: 'start'"),
        (["--probe", "--architecture", "brt"], "no architecture is called 'brt'"),
        (["--probe", "--method", "lroa"], "no method is called 'lroa'"),
        (["--probe", "--jobs", "0"], "--jobs"),
        (["--probe", "--out", "nowhere/table.json"], "nowhere is no folder"),
        (["--probe", "--out", "{broken}"], "no table that `trimtab methods --probe` wrote"),
    ],
)
def test_wrong_use(cli: Cli, tmp_path: Path, arguments: list[str], said: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text('{"lora": 3}')
    outcome = cli("methods", *(one.format(broken=file) for one in arguments))
    assert outcome.code == 2
    assert said in outcome.err
