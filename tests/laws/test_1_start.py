"""Law 1: at the start the adapted model equals the base."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import suite
import torch

import trimtab
from trimtab.core.method import Method, Param, Selection
from trimtab.match import sites
from trimtab.testing import ARCHITECTURES


@suite.held(1)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


@cases.pairs([method for method in cases.FREE if not isinstance(method, Selection)])
def test_a_method_without_a_site_says_so(method: Method, architecture: cases.Architecture) -> None:
    """Either something is adapted, or an error names the target; never nothing in silence."""
    model = architecture.model()
    parts = method.parts()
    found = [
        {s.name for s in sites(model) if s.roles & set(part.targets) and not part.accepts(s)}
        for part in parts
    ]
    if all(found):
        adapter = trimtab.attach(model, method)
        named = set.union(*found)
        assert list(adapter.hosts) == [s.name for s in sites(model) if s.name in named]
        assert adapter.parameters()
    else:
        with pytest.raises(trimtab.SiteNotFound, match="no site has the role"):
            trimtab.attach(model, method)
        assert "deltas" not in str(model)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_bitfit_finds_no_bias_where_there_is_none(name: str) -> None:
    with pytest.raises(trimtab.SiteNotFound, match="no site has the role 'biases'"):
        trimtab.attach(cases.by_name(name).model(), trimtab.BitFit())


class StartsElsewhere(trimtab.LoRA):
    def init(self, site: Any) -> dict[str, Param]:
        drawn = super().init(site)
        return {**drawn, "B": Param(torch.ones_like(drawn["B"].value))}


@pytest.mark.parametrize("name", [one.name for one in ARCHITECTURES])
def test_control(name: str) -> None:
    suite.breaks(StartsElsewhere(), "start", "against the base's", on=name)


class SaysWhy(StartsElsewhere):
    starts_at_base = "it starts where the paper says"


def test_a_reason_is_heard() -> None:
    with pytest.raises(pytest.skip.Exception, match="where the paper says"):
        suite.check(SaysWhy(), suite.LAWS["start"], cases.by_name("bert"))
