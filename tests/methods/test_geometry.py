"""Every method with a law over a matrix, at every kind of module that holds one: it starts at the
base, differs once changed, merges to the same, gives the base back; or it says why it cannot act.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cases
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention
from transformers.pytorch_utils import Conv1D

import trimtab
from trimtab.core.method import Method


@dataclass(frozen=True)
class Place:
    """A small model, the site within it, and an input."""

    make: Callable[[], nn.Module]
    to: str
    x: Callable[[], tuple[Any, ...]]

    def model(self) -> nn.Module:
        model = self.make().eval()
        with torch.no_grad():  # some leave theirs uninitialised
            for parameter in model.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape))
        return model.requires_grad_(False)  # frozen or not, torch's attention rounds otherwise


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class XLNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = XLNetRelativeAttention(hf.XLNetConfig(d_model=8, n_head=2, dropout=0.0))

    def forward(self, h: Tensor, r: Tensor) -> Tensor:
        return self.attention(h, None, None, None, r, None)[0]


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = hf.MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=3)
        config._experts_implementation = "eager"
        self.experts = MixtralExperts(config)

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.arange(2 * len(x)).view(-1, 2) % 3
        return self.experts(x, chosen, torch.full(chosen.shape, 0.5))


class Qkv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn = Conv1D(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_attn(x)


def floats(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(shape),)


def ids() -> tuple[Tensor, ...]:
    return (torch.randint(0, 12, (3, 5)),)


def one(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(make())


PLACES = {
    "linear": Place(one(lambda: nn.Linear(8, 12)), "0", floats(3, 5, 8)),
    "linear without bias": Place(one(lambda: nn.Linear(8, 12, bias=False)), "0", floats(3, 8)),
    "Conv1D": Place(one(lambda: Conv1D(12, 8)), "0", floats(3, 5, 8)),
    "conv1d": Place(one(lambda: nn.Conv1d(4, 6, 3, padding=1)), "0", floats(2, 4, 9)),
    "conv2d": Place(one(lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1)), "0", floats(2, 4, 8, 8)),
    "conv2d reflect": Place(
        one(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False)),
        "0",
        floats(2, 4, 8, 8),
    ),
    "grouped conv1d": Place(one(lambda: nn.Conv1d(4, 6, 3, groups=2)), "0", floats(2, 4, 9)),
    "grouped conv2d": Place(one(lambda: nn.Conv2d(4, 6, 3, groups=2)), "0", floats(2, 4, 8, 8)),
    "depthwise conv2d": Place(one(lambda: nn.Conv2d(4, 4, 3, groups=4)), "0", floats(2, 4, 8, 8)),
    "embedding": Place(one(lambda: nn.Embedding(12, 8)), "0", ids),
    "scaled embedding": Place(
        one(lambda: BartScaledWordEmbedding(12, 8, 1, embed_scale=3.0)), "0", ids
    ),
    "query of a fused map": Place(Qkv, "c_attn[query]", floats(3, 5, 8)),
    "value of a fused map": Place(Qkv, "c_attn[value]", floats(3, 5, 8)),
    "in_proj_weight": Place(SelfAttention, "attention.in_proj_weight", floats(3, 5, 8)),
    "value of in_proj_weight": Place(
        SelfAttention, "attention.in_proj_weight[value]", floats(3, 5, 8)
    ),
    "out_proj": Place(SelfAttention, "attention.out_proj", floats(3, 5, 8)),
    "experts": Place(Experts, "experts.gate_up_proj", floats(5, 8)),
    "experts, down": Place(Experts, "experts.down_proj", floats(5, 8)),
    "XLNet's q": Place(XLNet, "attention.q", lambda: (torch.randn(5, 3, 8), torch.randn(10, 3, 8))),
    "XLNet's o": Place(XLNet, "attention.o", lambda: (torch.randn(5, 3, 8), torch.randn(10, 3, 8))),
    "layer norm": Place(one(lambda: nn.LayerNorm(8)), "0", floats(3, 8)),
    "RMS norm": Place(one(lambda: nn.RMSNorm(8)), "0", floats(3, 8)),
}
MATRICES = {name for name in PLACES if "norm" not in name}
CONVS = {name for name in PLACES if "conv" in name.lower() and name != "Conv1D"}
# Where a method must act; elsewhere it may, or must say why not.
MUST = {
    **dict.fromkeys(("lora", "loha", "vera", "dora", "oft", "ia3"), MATRICES),
    **dict.fromkeys(("adalora", "diff-pruning", "delora", "vb-lora", "shared"), MATRICES),
    **dict.fromkeys(("lokr", "hira", "randlora"), MATRICES),
    "gralora": MATRICES - {"depthwise conv2d"},  # of nine columns
    "bitfit": {
        *("linear", "Conv1D", "conv1d", "conv2d", "grouped conv2d", "query of a fused map"),
        *("in_proj_weight", "value of in_proj_weight", "out_proj", "layer norm"),
    },
    "ln": {"layer norm", "RMS norm"},
    "tokens": {"embedding", "scaled embedding"},
}
PAIRS = pytest.mark.parametrize(
    ("method", "name"),
    [(method, name) for method in cases.AFFINE for name in PLACES],
    ids=[f"{method.name}-{name}" for method in cases.AFFINE for name in PLACES],
)


def attached(method: Method, name: str) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """A model with the method at the place, or a skip where it gives a reason."""
    model, x = PLACES[name].model(), PLACES[name].x()
    try:
        return model, x, trimtab.attach(model, method, PLACES[name].to)
    except trimtab.SiteNotFound as error:
        refused = str(error)
    assert name not in MUST.get(method.name, ()), refused
    assert f"{method.name} cannot act at" in refused
    pytest.skip(refused)


@PAIRS
def test_starts_differs_merges_and_comes_back(method: Method, name: str) -> None:
    model, x, adapter = attached(method, name)
    trimtab.activate(model, None)
    base, weights = model(*x), cases.state(model)
    trimtab.activate(model, "default")
    if method.starts_at_base is None:
        torch.testing.assert_close(model(*x), base, rtol=1e-5, atol=1e-5)
    cases.perturb(adapter)
    adapted = model(*x)
    cases.assert_differs(adapted, base)
    trimtab.merge(model)
    torch.testing.assert_close(model(*x), adapted, rtol=1e-4, atol=1e-5)
    trimtab.unmerge(model)
    trimtab.detach(model)
    assert torch.equal(model(*x), base)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


@PAIRS
def test_trains(method: Method, name: str) -> None:
    """Every parameter gets a gradient, which finite differences confirm."""
    model, x, adapter = attached(method, name)
    model = model.double()
    x = tuple(t.double() if t.is_floating_point() else t for t in x)
    for parameter in adapter.parameters():
        parameter.data = parameter.data.double()
    cases.perturb(adapter)
    weights = torch.randn_like(model(*x))
    (model(*x) * weights).sum().backward()
    for parameter in adapter.parameters():
        assert parameter.grad is not None
        if name in EXACT and method.name not in DETACHED:
            direction = torch.randn_like(parameter)
            slope = difference(model, x, weights, parameter, direction)
            torch.testing.assert_close(
                (parameter.grad * direction).sum(), slope, rtol=1e-4, atol=1e-5
            )


EXACT = {"linear", "grouped conv2d", "embedding", "experts", "layer norm"}
DETACHED = {"dora"}  # the norm is a constant to the backward pass


@torch.no_grad()
def difference(
    model: nn.Module, x: Any, weights: Tensor, parameter: Tensor, direction: Tensor
) -> Tensor:
    ends = []
    for sign in (1, -1):
        parameter.add_(sign * 1e-5 * direction)
        ends.append((model(*x) * weights).sum())
        parameter.sub_(sign * 1e-5 * direction)
    return (ends[0] - ends[1]) / 2e-5


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "linear", "in_proj_weight", "experts"])
def test_ia3_scales_the_input(name: str) -> None:
    test_starts_differs_merges_and_comes_back(trimtab.IA3(scales="input"), name)


@pytest.mark.parametrize("name", ["grouped conv2d", "embedding"])
def test_ia3_says_where_it_cannot_scale_the_input(name: str) -> None:
    with pytest.raises(trimtab.SiteNotFound, match="ia3 cannot act"):
        trimtab.attach(PLACES[name].model(), trimtab.IA3(scales="input"), PLACES[name].to)
