"""`check_method`, as someone with a method of their own uses it."""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trimtab
from trimtab import testing
from trimtab.core import registry
from trimtab.core.method import Additive, Param, Values
from trimtab.core.site import Site
from trimtab.testing import ARCHITECTURES, LAWS, LAYERS, Report, Row, check_method
from trimtab.testing.check import row

QUICK = [name for name in LAWS if name != "compile"]


@dataclass(frozen=True, kw_only=True)
class Rows(Additive):
    """Someone's own: one trained number for each output."""

    def init(self, site: Site) -> dict[str, Param]:
        fixed = torch.full((1, site.in_features), site.in_features**-0.5)
        column = torch.zeros(site.out_features, 1)
        return {"column": Param(column), "fixed": Param(fixed, trained=False)}

    def delta(self, p: Values) -> Tensor:
        return p.column @ p.fixed


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, as a class that states one is, but for the time of a test only."""
    monkeypatch.setattr(Rows, "name", "rows")
    monkeypatch.setitem(registry._methods, "rows", Rows)


class Spoiled(Rows):
    """The same, and its shortcut is wrong."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return 2 * super().matvec(p, x)


def test_a_method_of_ones_own() -> None:
    report = check_method(Rows, parameters=lambda sites: sum(site.out_features for site in sites))
    report.raise_if_broken()
    assert report.broken == []
    assert {found.law for found in report.rows} == set(LAWS)
    held = {found.law for found in report.of("holds")}
    assert held >= {
        "start",
        "gradients",
        "merge",
        "matrix",
        "files",
        "compile",
        "several",
        "counts",
    }
    general = [found for found in report.rows if found.law not in ("layers", "quantised")]
    assert len({found.architecture for found in general}) == 13
    assert [r.architecture for r in report.rows if r.law == "layers"] == [x.name for x in LAYERS]


def test_what_is_broken_is_reported_and_not_raised() -> None:
    report = check_method(Spoiled(), laws=["start", "merge", "matrix", "export", "hf-peft"])
    assert [found.law for found in report.broken] == ["merge", "matrix", "export"]
    text = str(report)
    assert "of 5 checks 1 hold, 1 do not apply, 3 are broken" in text
    assert "not applicable: HF PEFT has no such method" in text
    assert "broken: merged against unmerged: off by" in text
    with pytest.raises(AssertionError, match=r"3 of 5 checks are broken\nmerge on gpt2: merged"):
        report.raise_if_broken()


def test_any_exception_is_a_broken_law() -> None:
    class Failing(Rows):
        def delta(self, p: Values) -> Tensor:
            raise ZeroDivisionError("on purpose")

        matvec = delta  # type: ignore[assignment]

    found = check_method(Failing(), laws=["change"]).rows[0]
    assert found.outcome == "broken"
    assert "TypeError" in found.why or "ZeroDivisionError" in found.why


def test_given_architectures_each_meet_every_law() -> None:
    two = [ARCHITECTURES[0], ARCHITECTURES[3]]
    report = check_method(trimtab.BitFit(), two, laws=["start", "change"])
    assert [(found.law, found.architecture, found.outcome) for found in report.rows] == [
        ("start", "bert", "holds"),
        ("start", "llama", "not applicable"),
        ("change", "bert", "holds"),
        ("change", "llama", "not applicable"),
    ]


def test_by_default_the_next_architecture_that_can_tell() -> None:
    """BitFit finds no bias in T5, Llama; ViT has some."""
    report = check_method(trimtab.BitFit(), laws=["start", "change", "gradients", "merge"])
    places = [(found.architecture, found.outcome) for found in report.rows]
    assert places == [("bert", "holds"), ("gpt2", "holds"), ("vit", "holds"), ("vit", "holds")]


def test_the_callers_random_numbers_are_left() -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1), random.random()
    torch.manual_seed(5)
    random.seed(5)
    first = check_method(trimtab.LoRA(), laws=["start", "change", "files"])
    assert (torch.rand(1), random.random()) == expected
    assert check_method(trimtab.LoRA(), laws=["start", "change", "files"]).rows == first.rows


@pytest.mark.parametrize(
    ("method", "laws", "message"),
    [
        (trimtab.LoRA(), ["mrege"], "no law is called 'mrege'; nearest: 'merge'"),
        ("lora", None, "a method is an object such as"),
        (int, None, "a method is an object such as"),
    ],
)
def test_wrong_use(method: Any, laws: Any, message: str) -> None:
    with pytest.raises(trimtab.InputError, match=message):
        check_method(method, laws=laws)


def test_it_judges_where_assertions_are_off() -> None:
    """`python -O` takes `assert` statements out; the laws have none."""
    for path in Path(testing.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path


def test_rows_read_well() -> None:
    report = Report("mine", [Row("start", "bert", "holds"), Row("merge", "t5", "broken", "off")])
    lines = str(report).splitlines()
    assert lines[0] == "mine: of 2 checks 1 hold, 0 do not apply, 1 are broken"
    assert lines[2].split() == ["merge", "t5", "broken:", "off"]


def test_every_law_is_numbered_and_described() -> None:
    assert {law.number for law in LAWS.values()} == {*range(1, 12)}
    assert all(law.says and law.check.__doc__ for law in LAWS.values())
    assert row(trimtab.LoRA(), LAWS["start"], ARCHITECTURES[0]).outcome == "holds"
