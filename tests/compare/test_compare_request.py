"""What a comparison may be asked for, and what contradicts one that was begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.compare.request import open_request, parse
from trimtab.compare.schedule import Cell, rates, slug
from trimtab.core import registry
from trimtab.core.errors import InputError

FIELDS = {"models": "minilm", "data": "rows.csv", "out": "runs/x"}


def test_lists_are_given_as_on_the_command_line() -> None:
    request = parse({**FIELDS, "methods": "ia3,lora,ia3", "sizes": "all,128,32"}, "here")
    assert request.models == ["minilm"]
    assert request.methods == ["ia3", "lora"]
    assert request.sizes == [32, 128, None]
    assert request.every == ["ia3", "lora", "full", "layers", "head"]
    assert request.largest is None


def test_the_budget_of_every_run_is_the_same() -> None:
    request = parse({**FIELDS, "methods": "lora", "steps": 40, "tune_arg": {"batch_size": 8}}, "")
    one, other = (request.config("minilm", method, "out") for method in ("lora", "full"))
    assert {**one, "method": "full"} == other
    assert (one["max_steps"], one["batch_size"], one["patience"]) == (40, 8, None)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"models": "minilm", "data": "x"}, "--out is missing"),
        ({**FIELDS, "model": "minilm"}, "--model is one base and --models several"),
        ({**FIELDS, "trials": 0}, "--trials"),
        ({**FIELDS, "sizes": "0,all"}, "--sizes must be rows of train"),
        ({**FIELDS, "sizes": "few"}, "--sizes"),
        ({**FIELDS, "stepps": 3}, "there is no field 'stepps'"),
        ({**FIELDS, "tune_arg": {"batchsize": 8}}, "did you mean 'batch_size'"),
        ({**FIELDS, "tune_arg": {"lr": 1.0}}, "decided by the comparison itself"),
        ({**FIELDS, "method_arg": {"vera": {"rank": 8}}}, "none of the methods"),
        ({**FIELDS, "watts": -3}, "--watts"),
    ],
)
def test_what_cannot_be_asked_for(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse(fields, "trimtab compare")


def test_a_second_call_may_not_contradict_the_first(tmp_path: Path) -> None:
    given = {"model": "minilm", "data": "rows.csv", "out": str(tmp_path / "x"), "steps": 30}
    open_request(given).save()
    again = open_request({"out": str(tmp_path / "x")})
    assert (again.steps, again.models, again.out) == (30, ["minilm"], str(tmp_path / "x"))
    with pytest.raises(InputError, match=r"--steps 40 contradicts the comparison .* which has 30"):
        open_request({**given, "steps": 40})
    with pytest.raises(InputError, match=r"--model other contradicts .* which has minilm"):
        open_request({**given, "model": "other"})
    assert open_request({**given, "watts": 50.0}).watts == 50.0  # told, and nothing that is run


def test_learning_rates_stand_around_the_methods_own() -> None:
    own = registry.lookup("lora").learning_rate
    assert rates("lora", 1) == [own]
    assert sorted(rates("lora", 3)) == pytest.approx([own / 3, own, own * 3], rel=1e-2)
    for trials in range(1, 6):
        assert len(set(rates("ia3", trials))) == trials


def test_every_run_has_a_folder_of_its_own() -> None:
    cells = [
        Cell(model, method, rows, lr, seed)
        for model in ("minilm", "a/minilm", "b/minilm", "../minilm")
        for method in ("lora", "compacter", "compacter++")
        for rows in (None, 8)
        for lr in (1e-3, 3e-3)
        for seed in (0, 1)
    ]
    places = {cell.place for cell in cells}
    assert len(places) == len(cells)
    assert all(".." not in place.parts for place in places)
    assert slug("minilm") == "minilm"
