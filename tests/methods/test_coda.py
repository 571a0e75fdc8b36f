"""What the papers say of CoDA: fewer positions computed, each at its place; what cannot be cut."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab.core.layout import plain


def hosted(model: nn.Module) -> list[Any]:
    return list(model._trimtab.adapter("default").hosts.values())  # type: ignore[union-attr]


def vit() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = {"intermediate_size": 64, "image_size": 16, "patch_size": 4}
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, **shape)).eval()


def coded(name: str, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    if name == "vit":
        model, batch = vit(), {"pixel_values": torch.randn(2, 3, 16, 16)}
        batch["labels"] = torch.tensor([0, 1])
        trimtab.attach(model, trimtab.CoDA(width=4, **options))
        return model, batch
    model, batch = cases.by_name(name).model(), cases.by_name(name).batch()
    trimtab.attach(model, trimtab.CoDA(width=4, **options))
    return model, batch


everywhere = pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])


@everywhere
def test_coda_of_all_tokens_is_the_base(name: str) -> None:
    model, batch = coded(name, of=1.0)
    found = cases.logits(model, batch)
    trimtab.activate(model, None)
    torch.testing.assert_close(found, cases.logits(model, batch), rtol=1e-4, atol=1e-5)


@everywhere
def test_coda_computes_fewer_positions(name: str) -> None:
    model, batch = coded(name, of=3.0)
    counts: list[int] = []
    for host in hosted(model):
        plain(host).register_forward_hook(lambda m, a, y: counts.append(a[0].shape[1]))
    cases.logits(model, batch)
    positions = {"vit": [6, 6], "t5": [3, 2]}.get(name, [3, 3])  # of 17, of 7 and 5, of 7
    assert counts == positions
    cases.loss(model.train(), batch).backward()
    # The last block's tokens that no head reads leave its router without a gradient.
    assert hosted(model)[0].stack("default")["coda"].w.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_coda_gives_chosen_tokens_their_own_positions(name: str) -> None:
    """y - x points where the frozen block moves these tokens when it reads them alone, each at its
    own place."""
    model, batch = coded(name, of=2.0)
    host, ids = hosted(model)[0], batch["input_ids"]
    seen: list[Tensor] = []

    def keep(module: Any, args: Any, y: Any) -> None:
        seen[:] = [args[0], y if isinstance(y, Tensor) else y[0]]

    handle = host.register_forward_hook(keep)
    cases.logits(model, {"input_ids": ids})
    handle.remove()
    moves = seen[1] - seen[0]
    trimtab.activate(model, None)
    plain(host).register_forward_hook(keep)
    for row in range(2):
        chosen = moves[row].abs().sum(-1).nonzero()[:, 0]
        assert len(chosen) == 4
        alone = {"input_ids": ids[[row]][:, chosen], "position_ids": chosen[None]}
        cases.logits(model, alone)
        cosine = F.cosine_similarity(moves[row, chosen], (seen[1] - seen[0])[0], dim=-1)
        torch.testing.assert_close(cosine, torch.ones(4), rtol=0, atol=1e-4)


def test_soft_top_k_sums_to_k_within_its_bounds() -> None:
    from trimtab.methods.coda import soft_top_k

    scores = torch.randn(4, 50)
    gates = soft_top_k(scores, 10, 1.0, 20)
    assert gates.min() >= 0
    assert gates.max() <= 1 + 1e-5
    torch.testing.assert_close(gates.sum(1), torch.full((4,), 10.0), rtol=0.05, atol=0)
    assert (
        gates.topk(10, 1).indices.sort(1).values == scores.topk(10, 1).indices.sort(1).values
    ).all()


def test_coda_picks_no_padding() -> None:
    model, batch = coded("bert", of=2.0)
    hidden = [host.stack("default")["coda"] for host in hosted(model)]
    padded = cases.logits(model, batch)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 5:] = 7
    assert hidden
    torch.testing.assert_close(cases.logits(model, other), padded)


def test_coda_needs_no_cache() -> None:
    model, batch = coded("llama")
    prompt = batch["input_ids"]
    with pytest.raises(trimtab.InputError, match="use_cache=False"):
        model.generate(prompt, max_new_tokens=2, pad_token_id=0)  # type: ignore[operator]
    options = {"max_new_tokens": 2, "pad_token_id": 0, "use_cache": False, "eos_token_id": None}
    assert model.generate(prompt, **options).shape == (2, 9)  # type: ignore[operator]


class Windowed(nn.Module):
    """A block with an argument whose positions nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, windows: Any = None) -> Tensor:
        return x + self.inner(x)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Windowed() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, windows=(4, 4))
        return x


def test_coda_refuses_what_it_cannot_cut() -> None:
    model = Windows()
    trimtab.attach(model, trimtab.CoDA(width=2))
    with pytest.raises(trimtab.InputError, match="Windowed takes 'windows'"):
        model(torch.randn(2, 6, 8))
    encoder = nn.Sequential(*[nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)])
    with pytest.raises(trimtab.SiteNotFound, match="use batch_first"):
        trimtab.attach(nn.Sequential(encoder), trimtab.CoDA(width=2))
