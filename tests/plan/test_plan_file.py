"""Plans are read, edited and reused; a mistake names the file, the site and what is near."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab import attach
from trimtab.core.errors import AdapterMismatch, InputError, SiteNotFound
from trimtab.plan import Entry, Plan, read, write
from trimtab.plan.file import base
from trimtab.tune.config import parse


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(6, 6), nn.Linear(6, 6)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(6, 2)


PLAN = Plan(
    (
        Entry("layers.0.query", "lora", 3, gain=0.125, cost=36, sensitivity=0.25),
        Entry("layers.0.value", "lora", 0, gain=0.0, cost=0, sensitivity=0.01),
        Entry("layers.1.query", "dora", 2, cost=30, arguments={"dropout": 0.1}),
        Entry("layers.1.query", "bitfit", None, True, gain=1e-9, cost=6),
        Entry("layers.1.value", "bitfit", None, False),
    ),
    budget="0.5%",
    estimator="nuclear",
    model="a model: of “mine”",
    parameters=72,
    notes=("measured",),
)


def test_a_plan_is_the_same_after_a_round(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write(PLAN, path)
    again = read(path)
    assert again == PLAN
    assert again.content() == PLAN.content()
    lines = [line for line in path.read_text().splitlines() if line.startswith("- {")]
    assert len(lines) == len(PLAN.entries)
    assert len({line.index("method") for line in lines}) == 1, "columns"


def test_it_attaches_what_it_says() -> None:
    model = Model()
    adapter = attach(model, PLAN.methods(), train=["head"])
    ranks = {site: getattr(method, "rank", None) for site, method in adapter.entries}
    by_site = [(site, method.name) for site, method in adapter.entries if method.name != "whole"]
    assert by_site == [
        ("layers.0.query", "lora"),
        ("layers.1.query", "dora"),
        ("layers.1.query", "bitfit"),
    ]
    assert ranks["layers.0.query"] == 3
    scales = {m.scale for _, m in adapter.entries if hasattr(m, "scale")}
    assert scales == {2.0}, "a rank that is edited leaves the scale of the update"


def edited(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "plan.yaml"
    write(PLAN, path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rank: 3", "rank: three", r"plan\.yaml: layers\.0\.query: rank is a whole number"),
        ("rank: 3", "rnak: 3", r"layers\.0\.query: there is no field 'rnak'; nearest: 'rank'"),
        ("method: lora", "method: lroa", r"no method is called 'lroa'; nearest: "),
        ('"dropout"', '"dropuot"', r"layers\.1\.query: dora has no hyper-parameter 'dropuot'"),
        ("trains: true", "trains: 3", r"layers\.1\.query: trains is yes or no"),
        ("estimator:", "estimate:", r"no field 'estimate'; nearest: 'estimator'"),
        ("sites:", "places:", r"is no plan: it has no list of sites"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(edited(tmp_path, old, new))


def test_a_site_that_is_not_there_is_named_with_the_nearest() -> None:
    plan = Plan((Entry("layers.0.qeury", "lora", 2),))
    with pytest.raises(SiteNotFound, match=r"'layers\.0\.qeury'.*nearest: 'layers\.0\.query'"):
        plan.require(Model(), ())


def test_another_base_is_refused_unless_forced() -> None:
    model, other = Model(), Model()
    plan = Plan((Entry("layers.0.query", "lora", 2),), base=base(model, ()))
    plan.require(model, ())
    with pytest.raises(AdapterMismatch, match="another base"):
        plan.require(other, ())
    plan.require(other, (), force=True)


def test_a_new_head_is_no_other_base() -> None:
    model, other = Model(), Model()
    other.layers.load_state_dict(model.layers.state_dict())
    fresh = ("head.weight", "head.bias")
    assert base(model, fresh) == base(other, fresh)
    torch.nn.init.zeros_(other.layers[0].query.weight)
    assert base(model, fresh) != base(other, fresh)


RUN = {"model": "minilm", "data": "x.csv", "out": "runs/x"}


def test_a_run_holds_the_plan_and_not_its_path(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write(PLAN, path)
    config = parse({**RUN, "plan": str(path)}, "here")
    path.unlink()
    again = parse({**config.model_dump()}, "there")
    assert again == config
    assert again.build_method() == PLAN.methods()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "bitfit"}, "--method bitfit, but the plan is of lora"),
        ({"rank": 4}, "--rank is what the plan says"),
        ({"target": "query"}, "--target is what the plan says"),
    ],
)
def test_what_a_plan_says_is_not_said_twice(
    tmp_path: Path, given: dict[str, object], told: str
) -> None:
    path = tmp_path / "plan.yaml"
    write(PLAN, path)
    with pytest.raises(InputError, match=told):
        parse({**RUN, "plan": str(path), **given}, "here")


@pytest.mark.parametrize("given", [{"method": "auto"}, {"budget": "1%"}])
def test_auto_and_its_budget_belong_together(given: dict[str, str]) -> None:
    with pytest.raises(InputError, match="belong together"):
        parse({**RUN, **given}, "here")


def test_a_plan_of_a_selection_is_that_method(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write(Plan((Entry("model", "layers", arguments={"top": 1}, cost=5),)), path)
    config = parse({**RUN, "plan": str(path)}, "here")
    assert (config.method, config.build_method().top) == ("layers", 1)
