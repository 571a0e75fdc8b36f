"""Starts from the base's weights: HF PEFT's values, the base's outputs at the start."""

from __future__ import annotations

from typing import Any

import cases
import peft
import pytest
import torch
from small import TARGETS, net, of_peft
from torch import Tensor, nn
from torch.nn.utils import parametrize

import trimtab
from trimtab import init

METHODS = {
    "lora": trimtab.LoRA(rank=4, alpha=6),
    "rslora": trimtab.LoRA(rank=4, alpha=6, rslora=True),
    "dora": trimtab.DoRA(rank=4, alpha=6),
}


def started(adapter: Any) -> dict[str, Tensor]:
    """s B A at every site."""
    return {
        site: (delta.method.scale * delta.B @ delta.A).detach() for site, delta in adapter.deltas()
    }


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_as_hf_peft_starts(start: str, kind: str) -> None:
    ours, x = net(), torch.randn(5, 12)
    before = ours(x)
    adapter = trimtab.attach(ours, METHODS[kind], TARGETS)
    assert getattr(init, start)(ours) is adapter
    options: Any = {"use_rslora": kind == "rslora", "use_dora": kind == "dora"}
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=start, **options
    )
    theirs = peft.get_peft_model(net(), config)
    for site, product in started(adapter).items():
        torch.testing.assert_close(product, of_peft(theirs, site) if kind != "dora" else product)
        layer = theirs.get_submodule(f"base_model.model.{site}")
        changed = ours.get_submodule(site).weight - product
        torch.testing.assert_close(changed, layer.base_layer.weight, rtol=1e-5, atol=1e-6)
    if kind == "dora":
        torch.testing.assert_close(ours(x), before)
    else:
        assert torch.equal(ours(x), before)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    assert all(delta.method.anchored for _, delta in adapter.deltas())


def test_trained_alike_it_stays_alike() -> None:
    """Two steps of the same optimizer from the same start: the anchor is that of HF PEFT's base."""
    ours, x = net(), torch.randn(20, 12)
    trimtab.attach(ours, METHODS["lora"], TARGETS)
    optimizer = torch.optim.SGD(trimtab.parameters(ours), lr=0.1)
    init.pissa(ours)  # of the same shapes: the optimizer's parameters are still these
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights="pissa")
    theirs = peft.get_peft_model(net(), config)
    other = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
    before = ours(x)
    for _ in range(2):
        for model, one in ((ours, optimizer), (theirs, other)):
            one.zero_grad()
            model(x).square().mean().backward()
            one.step()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert (ours(x) - before).abs().max() > 1e-3


def test_fast_pissa_leaves_hardly_more_than_the_exact_one() -> None:
    left = []
    for niter in (None, 16):
        model = net()
        trimtab.attach(model, METHODS["lora"], TARGETS)
        products = started(init.pissa(model, niter=niter))
        left.append({s: (model.get_submodule(s).weight - p).norm() for s, p in products.items()})
    exact, fast = left
    assert all(exact[site] <= fast[site] * 1.0001 for site in exact)
    assert all(fast[site] < 1.02 * exact[site] for site in exact)


def test_orthogonal_factors_have_no_product_and_hf_pefts_size() -> None:
    ours = net()
    adapter = trimtab.attach(ours, METHODS["lora"], ["left"])
    init.orthogonal(ours)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["left"], init_lora_weights="orthogonal"
    )
    theirs = peft.get_peft_model(net(), config)
    ((_, delta),) = adapter.deltas()
    product = delta.B @ delta.A
    assert product.abs().max() < 1e-7 < 1e-3 < delta.B.abs().max()
    assert not delta.method.anchored
    sizes = [delta.A.std(), delta.B.std()]
    other = theirs.get_submodule("base_model.model.left")
    their_sizes = [other.lora_A.default.weight.std(), other.lora_B.default.weight.std()]
    torch.testing.assert_close(sizes, their_sizes, rtol=0.5, atol=0)
    x = torch.randn(5, 12)
    torch.testing.assert_close(ours(x), net()(x), rtol=1e-5, atol=1e-6)


def test_orthogonal_asks_for_an_even_rank() -> None:
    model = net()
    trimtab.attach(model, trimtab.LoRA(rank=3), TARGETS)
    with pytest.raises(trimtab.InputError, match=r"'left' is 3.*even"):
        init.orthogonal(model)


class Rounded(nn.Module):
    """Weights as a quantiser leaves them, in floats."""

    def forward(self, W: Tensor) -> Tensor:
        return init.nf4(W)


@pytest.mark.parametrize("kind", METHODS)
def test_loftq_makes_up_for_what_quantising_took(kind: str) -> None:
    floats, quantised, x = net(), net(), torch.randn(50, 12)
    with torch.no_grad():
        for name in TARGETS:
            layer = quantised.get_submodule(name)
            layer.weight.copy_(init.nf4(layer.weight))
    far = (quantised(x) - floats(x)).norm()
    adapter = trimtab.attach(quantised, METHODS[kind], TARGETS)
    init.loftq(quantised, floats)
    from peft.utils.loftq_utils import _low_rank_decomposition

    for site, delta in adapter.deltas():
        assert not delta.method.anchored
        W, Q = floats.get_submodule(site).weight, quantised.get_submodule(site).weight
        theirs = _low_rank_decomposition(W - Q, reduced_rank=4)
        torch.testing.assert_close(started(adapter)[site], (theirs["L"] @ theirs["R"]).detach())
    assert (quantised(x) - floats(x)).norm() < 0.7 * far


def test_loftq_takes_a_state_dict_and_says_what_it_lacks() -> None:
    model = net()
    trimtab.attach(model, METHODS["lora"], TARGETS)
    with pytest.raises(trimtab.InputError, match=r"nothing was lost.*quantise\(model"):
        init.loftq(model, net().state_dict())
    init.loftq(model, {name: tensor + 0.01 for name, tensor in net().state_dict().items()})
    with pytest.raises(trimtab.AdapterMismatch, match=r"no 'left\.weight'.*nearest: 'left\.bias'"):
        init.loftq(model, {"left.bias": torch.zeros(16)})
    with pytest.raises(trimtab.AdapterMismatch, match="must be floats of 16 x 12"):
        init.loftq(model, {"left.weight": torch.zeros(3, 12)})


def test_alternating_comes_nearer() -> None:
    W = torch.randn(48, 64)
    errors = []
    for steps in (1, 5):
        Q, A, B = init.alternate(W, 8, steps=steps)
        torch.testing.assert_close(init.nf4(Q), Q)  # so that a quantiser leaves it as it is
        errors.append((W - Q - B @ A).norm())
    assert errors[1] < errors[0] < (W - init.nf4(W)).norm()


def test_nf4_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    W = torch.randn(32, 64)
    codes, state = functional.quantize_4bit(W, quant_type="nf4", blocksize=64)
    torch.testing.assert_close(init.nf4(W), functional.dequantize_4bit(codes, state))


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit", "xlnet", "whisper"])
def test_on_real_architectures(name: str, start: str) -> None:
    architecture = cases.by_name(name)
    model, batch = architecture.model().eval(), architecture.batch()
    before = cases.logits(model, batch)
    trimtab.attach(model, trimtab.LoRA(rank=2))
    getattr(init, start)(model)
    assert torch.equal(cases.logits(model, batch), before)


def test_parts_of_maps_and_transposed_maps() -> None:
    """GPT-2 keeps (in, out), and query, key and value in one map."""
    architecture = cases.by_name("gpt2")
    model = architecture.model().eval()
    before = cases.logits(model, architecture.batch())
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), ["c_attn[query]", "*mlp.c_fc"])
    init.pissa(model)
    assert torch.equal(cases.logits(model, architecture.batch()), before)
    for site, delta in adapter.deltas():
        home = site.partition("[")[0]
        W = model.get_submodule(home).weight.mT[: delta.B.shape[0]]
        U, S, V = torch.linalg.svd(W)
        torch.testing.assert_close(
            delta.method.scale * delta.B @ delta.A, U[:, :2] * S[:2] @ V[:2], rtol=1e-4, atol=1e-5
        )


def test_what_has_no_factors_or_too_few_directions() -> None:
    model = net()
    trimtab.attach(model, {"left": trimtab.IA3(scales="output")}, name="scales")
    with pytest.raises(trimtab.InputError, match=r"'scales' \(ia3\) has no low-rank factors"):
        init.pissa(model, "scales")
    trimtab.attach(model, trimtab.LoRA(rank=11), TARGETS, name="wide")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(trimtab.InputError, match=r"'out' is 11.*10 x 16 has 10"):
        init.olora(model, "wide")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(trimtab.InputError, match="name one of the 2 adapters"):
        init.pissa(model)


def test_a_base_that_is_not_itself_is_refused() -> None:
    model = net()
    trimtab.attach(model, METHODS["lora"], TARGETS, name="a")
    next(iter(model._trimtab.adapters["a"].deltas()))[1].B.data.fill_(0.1)
    trimtab.merge(model)
    with pytest.raises(trimtab.StateError, match="unmerge"):
        init.pissa(model, "a")
    trimtab.unmerge(model)
    trimtab.attach(model, trimtab.Full(), name="all")
    with pytest.raises(trimtab.StateError, match="'all' has changed"):
        init.pissa(model, "a")


def test_other_methods_of_the_adapter_stay() -> None:
    model = net()
    adapter = trimtab.attach(model, [trimtab.LoRA(rank=2), trimtab.BitFit()], train=["out"])
    init.pissa(model)
    kinds = {(site, method.name) for site, method in adapter.entries}
    assert kinds == {
        ("left", "lora"),
        ("left", "bitfit"),
        ("right", "lora"),
        ("out", "whole"),
    }
    assert {m.anchored for m in adapter.methods if isinstance(m, trimtab.LoRA)} == {True}


def test_a_weight_that_is_computed_can_start_a_factor() -> None:
    model = net()
    parametrize.register_parametrization(model.left, "weight", Rounded())
    trimtab.attach(model, METHODS["lora"], ["left"])
    x = torch.randn(4, 12)
    before = model(x)
    init.pissa(model)
    assert torch.equal(model(x), before)
