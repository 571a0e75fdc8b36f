"""Law 3: merged equals unmerged, its matrix is the probed one, unmerging restores the base."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import suite
import torch
from broken import Crooked, Forgetful
from torch import Tensor

import trimtab
from trimtab.core.method import Method, Values


@suite.held(3)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


def test_a_tied_weight_is_not_merged_into() -> None:
    """Written into the shared tensor, the head's delta would change the embedding too."""
    model, batch = cases.by_name("gpt2").model(), cases.by_name("gpt2").batch()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(), "head"))
    adapted = cases.logits(model, batch)
    with pytest.raises(trimtab.StateError, match=r"'transformer\.wte' and 'lm_head' are tied"):
        trimtab.merge(model)
    assert torch.equal(cases.logits(model, batch), adapted)
    trimtab.activate(model, None)


def test_a_merge_that_overflows_leaves_the_base() -> None:
    model = cases.by_name("bert").model().to(torch.float16)
    base = cases.state(model)
    adapter = trimtab.attach(model, trimtab.LoRA(), "attention")
    list(adapter.hosts.values())[-1].stack("default")["lora"].B.data.fill_(1e6)
    with pytest.raises(trimtab.TrimtabError, match="not finite"):
        trimtab.merge(model)
    trimtab.detach(model)
    cases.assert_same_state(model, base)


def test_verbs_on_a_merged_model() -> None:
    model = cases.by_name("bert").model()
    trimtab.attach(model, trimtab.LoRA())
    with pytest.raises(trimtab.StateError, match="not merged"):
        trimtab.unmerge(model)
    trimtab.merge(model)
    for verb in (
        lambda: trimtab.merge(model),
        lambda: trimtab.activate(model, None),
        lambda: trimtab.detach(model),
        lambda: trimtab.attach(model, trimtab.LoRA(), name="second"),
    ):
        with pytest.raises(trimtab.StateError, match="merged"):
            verb()


class Vandal(trimtab.LoRA):
    """Its law writes into the base's own weight."""

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return super().affine(p, W.mul_(1.01).div_(1.01).add_(0.01), b)


class Stubborn(trimtab.LoRA):
    """It has a law, and does not merge."""

    def rewrite(self, *args: Any) -> Any:
        raise trimtab.InputError("not today")


@pytest.mark.parametrize("broken", [Forgetful(), Crooked()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("law", ["merge", "matrix", "export"])
def test_a_law_that_says_another_thing(broken: Method, law: str) -> None:
    suite.breaks(broken, law, "off by")


def test_controls() -> None:
    suite.breaks(Vandal(), "unmerge", "not what they were")
    suite.breaks(Stubborn(), "merge", "does not merge: not today")
