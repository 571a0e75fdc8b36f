"""Law 3: merged equals unmerged, the law's matrix is the matrix that one probes, and unmerging
restores the base bit for bit."""

from __future__ import annotations

import cases
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import trimtab
from trimtab.core.host import Host
from trimtab.core.method import Method, Values


def merged_equals_unmerged(method: Method, architecture: cases.Architecture) -> None:
    model, batch = architecture.model(), architecture.batch()
    cases.perturb(cases.attach(model, method))
    unmerged = cases.logits(model, batch)
    trimtab.merge(model)
    torch.testing.assert_close(cases.logits(model, batch), unmerged, rtol=1e-4, atol=1e-4)


def law_equals_probe(method: Method, architecture: cases.Architecture) -> None:
    model = architecture.model()
    adapter = cases.attach(model, method)
    cases.perturb(adapter)
    for site, host in adapter.hosts.items():
        probe_at(site, host)


@torch.no_grad()
def probe_at(site: str, host: Host) -> None:
    """The identity gives the matrix; any input gives what the base would with the law's tensors."""
    operator, geometry = host.operator(), host.geometry
    weight, bias = operator.weight, operator.bias
    if geometry.kind == "linear":
        assert weight.shape == (geometry.out_features, geometry.in_features), site
        at_zero = operator(torch.zeros(1, geometry.in_features))
        probed = (operator(torch.eye(geometry.in_features)) - at_zero).T
        torch.testing.assert_close(weight, probed, rtol=1e-5, atol=1e-5, msg=site)
        shift = torch.zeros(geometry.out_features) if bias is None else bias
        torch.testing.assert_close(at_zero[0], shift, rtol=1e-5, atol=1e-5, msg=site)
    own = {"weight": geometry.store(weight)} | ({} if bias is None else {"bias": bias})
    x = torch.randn(3, geometry.in_features)
    torch.testing.assert_close(
        operator(x), functional_call(host.base, own, (x,)), rtol=1e-5, atol=1e-5, msg=site
    )


@cases.pairs()
def test_merged_equals_unmerged(method: Method, architecture: cases.Architecture) -> None:
    merged_equals_unmerged(method, architecture)


@cases.pairs(cases.AFFINE)
def test_the_laws_matrix_is_the_probed_one(
    method: Method, architecture: cases.Architecture
) -> None:
    law_equals_probe(method, architecture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@cases.pairs()
def test_unmerge_restores_the_base_bit_for_bit(
    method: Method, architecture: cases.Architecture, dtype: torch.dtype
) -> None:
    model, batch = architecture.model().to(dtype), architecture.batch()
    base = cases.state(model)
    cases.perturb(cases.attach(model, method))
    attached, outputs = cases.state(model), cases.logits(model, batch)
    trimtab.merge(model)
    trimtab.unmerge(model)
    cases.assert_same_state(model, attached)
    assert torch.equal(cases.logits(model, batch), outputs)
    trimtab.activate(model, None)
    held = model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in base.items())


@cases.pairs()
def test_a_merged_model_is_an_ordinary_one(
    method: Method, architecture: cases.Architecture
) -> None:
    """Its state loads into a plain model, which then gives the adapted outputs."""
    model, plain, batch = architecture.model(), architecture.model(), architecture.batch()
    keys = list(model.state_dict())
    cases.perturb(cases.attach(model, method))
    unmerged = cases.logits(model, batch)
    trimtab.merge(model)
    assert list(model.state_dict()) == keys
    plain.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(cases.logits(plain, batch), unmerged, rtol=1e-4, atol=1e-4)
    kept = trimtab.detach(model, keep=True)
    cases.assert_same_state(kept, plain.state_dict())
    assert torch.equal(cases.logits(kept, batch), cases.logits(plain, batch))


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


class Forgetful(trimtab.LoRA):
    """Its shortcut forgets the scale that its law states."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return x @ p.A.T @ p.B.T


class Crooked(trimtab.IA3):
    """Its law leaves the bias as it was, its forward scales it."""

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return super().affine(p, W, b)[0], b


def test_controls() -> None:
    bert = cases.by_name("bert")
    for broken in (Forgetful(), Crooked()):
        with pytest.raises(AssertionError):
            merged_equals_unmerged(broken, bert)
        with pytest.raises(AssertionError):
            law_equals_probe(broken, bert)
