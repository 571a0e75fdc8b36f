"""Law 1: at the start the adapted model equals the base."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch

import trimtab
from trimtab.core.method import Method, Param
from trimtab.match import sites


def starts_at_the_base(method: Method, architecture: cases.Architecture) -> None:
    model, batch = architecture.model(), architecture.batch()
    before = cases.logits(model, batch)
    cases.attach(model, method)
    torch.testing.assert_close(cases.logits(model, batch), before, rtol=0, atol=2e-6)


@cases.pairs()
def test_starts_at_the_base(method: Method, architecture: cases.Architecture) -> None:
    starts_at_the_base(method, architecture)


@cases.pairs(cases.SITED)
def test_a_method_without_a_site_says_so(method: Method, architecture: cases.Architecture) -> None:
    """Either something is adapted, or an error names the target; never nothing in silence."""
    model = architecture.model()
    found = [s for s in sites(model) if s.roles & set(method.targets) and not method.accepts(s)]
    if found:
        adapter = trimtab.attach(model, method)
        assert list(adapter.hosts) == [site.name for site in found]
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


@pytest.mark.parametrize("architecture", cases.ARCHITECTURES, ids=lambda a: a.name)
def test_control(architecture: cases.Architecture) -> None:
    with pytest.raises(AssertionError):
        starts_at_the_base(StartsElsewhere(), architecture)
