"""What the papers claim of methods that act on weights, and what their arguments must be."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import nn

import trimtab
from trimtab.core.adapter import record


def linear(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])


@pytest.mark.parametrize("options", [{}, {"share": True}, {"blocks": 2}, {"neumann": 9}], ids=str)
def test_oft_keeps_lengths_and_angles(options: dict[str, Any]) -> None:
    """W'W'ᵀ = WWᵀ: rotations keep the neurons' lengths and the angles between them."""
    model = linear(12, 7)
    W = model[0].weight.detach().clone()
    block = {} if "blocks" in options else {"block": 4}
    cases.perturb(trimtab.attach(model, trimtab.OFT(**block, **options), "0"), by=0.05)
    trimtab.merge(model)
    assert (model[0].weight - W).abs().max() > 0.01
    torch.testing.assert_close(model[0].weight @ model[0].weight.T, W @ W.T, rtol=1e-4, atol=1e-4)


def test_oft_mixes_within_blocks_only() -> None:
    model = linear(12, 7)
    delta = trimtab.attach(model, trimtab.OFT(block=4), "0").members[0]
    with torch.no_grad():
        delta.tensors()["S"][1].normal_()
    weight = record(model).adapter(None).hosts["0"].operator().weight
    changed = (weight != model[0].base.weight).any(0)
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("width", "block", "size"), [(12, 5, 4), (12, 32, 12), (7, 3, 7), (2, 9, 2)]
)
def test_oft_takes_the_nearest_divisor(width: int, block: int, size: int) -> None:
    model = linear(width, 3)
    delta = trimtab.attach(model, trimtab.OFT(block=block), "0").members[0]
    assert delta.tensors()["S"].shape == (width // size, size * (size - 1) // 2)


def test_bounded_oft_stays_within_its_ball() -> None:
    model = linear(12, 7)
    delta = trimtab.attach(model, trimtab.OFT(block=4, eps=0.3), "0").members[0]
    S = delta.tensors()["S"]
    with torch.no_grad():
        S.normal_()
    before = model(torch.ones(1, 12))
    before.sum().backward()
    trimtab.after_backward(model, 1, 1)
    norms = S.detach().norm(dim=1) * 2**0.5
    torch.testing.assert_close(norms, torch.full((3,), 0.3 / 3**0.5))
    torch.testing.assert_close(model(torch.ones(1, 12)), before)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("block", [4, 40])
def test_oft_leaves_out_blocks_while_training(block: int, share: bool) -> None:
    """Each by its chance, where there is one block, or one rotation for all of them, too."""
    model = linear(40, 5).train()
    method = trimtab.OFT(block=block, dropout=0.25, share=share)
    adapter = trimtab.attach(model, method, "0")
    cases.perturb(adapter)
    delta = adapter.members[0]
    turned = [delta.method._turn(delta.values(torch.float32)) for _ in range(1600 // (40 // block))]
    out = torch.stack([(one.flatten(1) == 0).all(1) for one in turned])
    assert out.shape[1] == 40 // block
    assert abs(out.float().mean() - 0.25) < 0.05
    model.eval()
    assert (delta.method._turn(delta.values(torch.float32)).flatten(1) != 0).any(1).all()


def test_dora_has_the_lengths_that_it_learnt() -> None:
    model = linear(12, 7)
    adapter = trimtab.attach(model, trimtab.DoRA(rank=2), "0")
    cases.perturb(adapter, by=0.5)
    m = adapter.members[0].tensors()["m"].detach()
    weight = adapter.hosts["0"].operator().weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), m.abs())


def test_dora_keeps_a_row_of_zeros_finite() -> None:
    model = linear(12, 7)
    with torch.no_grad():
        model[0].weight[2] = 0
    x = torch.randn(3, 12)
    before = model(x)
    trimtab.attach(model, trimtab.DoRA(rank=2), "0")
    torch.testing.assert_close(model(x), before)
    model(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in trimtab.parameters(model))
    trimtab.merge(model)
    torch.testing.assert_close(model(x), before)


def test_dora_stores_no_matrix_for_its_backward_pass() -> None:
    """What is kept is rows of the input and of the output, never (out, in)."""
    model = linear(64, 96)
    trimtab.attach(model, trimtab.DoRA(rank=2), "0")
    kept: list[int] = []
    base = model[0].base.weight

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() != base.untyped_storage().data_ptr():
            kept.append(tensor.numel())
        return tensor

    x = torch.randn(4, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = model(x)
    y.sum().backward()
    assert kept
    assert max(kept) <= 4 * 96


def test_tokens_change_their_rows_only() -> None:
    model = nn.Sequential(nn.Embedding(10, 4))
    ids = torch.arange(10).view(2, 5)
    before = model(ids).detach()
    adapter = trimtab.attach(model, trimtab.Tokens(rows=(7, 2)), "0")
    assert [tuple(p.shape) for p in adapter.parameters()] == [(2, 4)]
    cases.perturb(adapter)
    changed = (model(ids) != before).any(-1).flatten()
    assert changed.nonzero().flatten().tolist() == [2, 7]
    assert torch.equal(model(torch.tensor([[7, 2]]))[0], adapter.parameters()[0])


def test_tokens_beyond_the_table() -> None:
    with pytest.raises(trimtab.InputError, match=r"rows has 10, and '0' has 10 rows: resize"):
        trimtab.attach(nn.Sequential(nn.Embedding(10, 4)), trimtab.Tokens(rows=(3, 10)), "0")


def test_ln_over_bitfit_replaces_its_shift() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    x = torch.randn(3, 4)
    trimtab.attach(model, trimtab.LNTuning(), "0", name="ln")
    cases.perturb(record(model).adapter("ln"))
    alone = model(x)
    cases.perturb(trimtab.attach(model, trimtab.BitFit(), "0", name="bitfit"))
    trimtab.activate(model, trimtab.Stack("bitfit", "ln"))
    torch.testing.assert_close(model(x), alone)
    trimtab.merge(model)
    torch.testing.assert_close(model(x), alone)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("top", [1, 2])
def test_layers_trains_the_last_blocks_and_the_head(name: str, top: int) -> None:
    model = cases.by_name(name).model()
    trimtab.attach(model, trimtab.Layers(top=top))
    asking = {n for n, p in model.named_parameters() if p.requires_grad}
    blocks = {
        "bert": "bert.encoder.layer.",
        "gpt2": "transformer.h.",
        "llama": "model.layers.",
        "t5": "decoder.block.",
    }[name]
    own = {n for n, _ in model.named_parameters()}
    last = {n for n in own if n.startswith(tuple(f"{blocks}{i}." for i in range(2 - top, 2)))}
    head = {n for n in own if n.startswith(("classifier.", "lm_head."))}
    assert asking == last | head
    assert last


def test_layers_that_are_not_there() -> None:
    model = cases.by_name("bert").model()
    with pytest.raises(trimtab.InputError, match=r"top=3, and bert has 2 blocks"):
        trimtab.attach(model, trimtab.Layers(top=3))
    with pytest.raises(trimtab.InputError, match="no blocks were recognised in Sequential"):
        trimtab.attach(linear(4, 4), trimtab.Layers())


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("lora", {"rank": 0}, "rank must be at least 1, not 0"),
    ("lora", {"alpha": float("inf")}, "alpha must be finite"),
    ("lora", {"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
    ("lora", {"rank": 2.5}, "rank must be int"),
    ("loha", {"rank": -1}, "rank must be at least 1"),
    ("vera", {"d_initial": float("nan")}, "d_initial must be finite"),
    ("vera", {"seed": -1}, "seed must be at least 0"),
    ("lokr", {"factor": 0}, "factor must be -1 or at least 1"),
    ("lokr", {"rank": 0}, "rank must be at least 1"),
    ("hira", {"rank": 0}, "rank must be at least 1"),
    ("hira", {"dropout": 1.0}, "dropout must lie"),
    ("randlora", {"rank": 0}, "rank must be at least 1"),
    ("randlora", {"seed": -1}, "seed must be at least 0"),
    ("vb-lora", {"topk": 300}, r"topk must lie in \[1, 256\], the number of vectors"),
    ("vb-lora", {"vector_length": 0}, "vector_length must be at least 1"),
    ("vb-lora", {"bank_bound": 0.0}, "bank_bound must be above 0, or no gradient"),
    ("vb-lora", {"logits_std": -1.0}, "logits_std must be at least 0"),
    ("shared", {"length": 0}, "length must be at least 1"),
    ("shared", {"bound": 0.0}, "bound must be above 0, or no gradient"),
    ("shared", {"seed": -1}, "seed must be at least 0"),
    ("delora", {"rank": 0}, "rank must be at least 1"),
    ("delora", {"strength": 0.0}, "strength must be above 0 if it is anchored"),
    ("gralora", {"rank": 5}, "rank must be a multiple of blocks=2"),
    ("gralora", {"blocks": 0}, "blocks must be at least 1"),
    ("gralora", {"hybrid": -1}, "hybrid must be at least 0"),
    ("ia3", {"scales": "both"}, "scales must be one of auto, input, output, not 'both'"),
    ("dora", {"rank": 0}, "rank must be at least 1"),
    ("dora", {"dropout": -0.1}, "dropout must lie"),
    ("oft", {"block": 1}, "block must be at least 2"),
    ("oft", {"blocks": -1}, "blocks must be at least 0"),
    ("oft", {"neumann": 1}, "neumann must be 0 or at least 2"),
    ("oft", {"eps": -1.0}, "eps must be at least 0"),
    ("oft", {"dropout": 1.0}, "dropout must lie"),
    ("adalora", {"target": 13}, r"target must lie in \[0, 12\], the rank, not 13"),
    ("adalora", {"interval": 0}, "interval must be at least 1"),
    ("adalora", {"beta1": 1.0}, r"beta1 must lie in \(0, 1\)"),
    ("adalora", {"orthogonality": -1.0}, "orthogonality must be at least 0"),
    ("diff-pruning", {"budget": 0.0}, r"budget must lie in \(0, 1\]"),
    ("diff-pruning", {"l0": -1.0}, "l0 must be at least 0"),
    ("diff-pruning", {"groups": "column"}, "groups must be one of none, matrix, row"),
    ("diff-pruning", {"refine": 1.0}, r"refine must lie in \[0, 1\)"),
    ("layers", {"top": 0}, "top must be at least 1"),
    ("tokens", {"rows": ()}, "rows must be distinct ids"),
    ("tokens", {"rows": (1, 1)}, "rows must be distinct ids"),
    ("tokens", {"rows": (-1,)}, "rows must be distinct ids"),
    ("tokens", {"rows": (1.5,)}, "rows must be distinct ids"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_arguments_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(trimtab.InputError, match=f"{name}: {message}"):
        trimtab.methods()[name](**arguments)


@pytest.mark.parametrize(
    ("length", "kind"), [(256, torch.uint8), (300, torch.int16), (40000, torch.int32)]
)
def test_shared_indices_take_the_fewest_bytes(
    length: int, kind: torch.dtype, tmp_path: Path
) -> None:
    """And come from the file, whatever would be drawn here; one beyond the vector is refused."""
    model = linear(12, 7)
    adapter = trimtab.attach(model, trimtab.Shared(length=length, rank=2), "0")
    delta = adapter.members[0]
    assert delta.tensors()["A"].dtype == delta.tensors()["B"].dtype == kind
    delta.tensors()["A"].copy_(delta.tensors()["A"].flip(0))  # as another version would draw
    trimtab.save(model, tmp_path)
    again, x = linear(12, 7), torch.randn(3, 12)
    trimtab.load(again, tmp_path)
    assert torch.equal(again(x), model(x))
    delta.become(trimtab.Shared(length=length - 1, rank=2))
    delta.tensors()["B"][0, 0] = length - 1
    assert delta.method.misfit(delta.live()) == f"indices lie beyond a vector of {length - 1}"
