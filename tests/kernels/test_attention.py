"""Attention by blocks of queries is attention."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import trimtab
from trimtab.core.errors import InputError
from trimtab.kernels import attention, cpu
from trimtab.kernels.attention import Blockwise, Compiled

B, H, T, D = 2, 6, 37, 8
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()
PADDED = (torch.arange(T)[None] < torch.tensor([T, 20])[:, None])[:, None, None]
MASKS: dict[str, Tensor | None] = {
    "none": None,
    "padding": PADDED.expand(B, 1, T, T),
    "causal": CAUSAL[None, None],
    "causal, padded": CAUSAL & PADDED,
    "window": (CAUSAL & ~CAUSAL.tril(-7))[None, None],
    "packed": (CAUSAL & (torch.arange(T)[:, None] // 11 == torch.arange(T) // 11))[None, None],
    "sees its prompt": (CAUSAL | (torch.arange(T) < 9))[None, None],
    "of each head": torch.rand(1, H, T, T, generator=torch.Generator().manual_seed(0)) < 0.5,
}


def made(groups: int, keys: int = T, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((B, H, T, D), (B, groups, keys, D), (B, groups, keys, D))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def twice(y: Tensor, given: list[Tensor]) -> list[Tensor]:
    """The gradients of a sum of squares, and those of their squares."""
    first = torch.autograd.grad(y.square().sum(), given, create_graph=True)
    total = sum((one.square().sum() for one in first), torch.zeros((), dtype=y.dtype))
    return [*first, *torch.autograd.grad(total, given)]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("block", [5, 16, 128])
@pytest.mark.parametrize("name", [*MASKS, "causal by a flag"])
def test_it_is_attention(
    name: str, block: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_BLOCK", block)
    given, causal = made(groups), name == "causal by a flag"
    mask = None if causal else MASKS[name]
    y = Blockwise.apply(*given, mask, causal, 0.3)
    q, k, v = given
    k, v = (one.repeat_interleave(H // groups, 1) for one in (k, v))
    expected = scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=0.3)
    torch.testing.assert_close(y, expected)
    once = torch.autograd.grad(y.square().sum(), given, retain_graph=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=0.3)
        wanted = torch.autograd.grad(expected.square().sum(), given, retain_graph=True)
        for one, other in zip(
            [*once, *twice(y, given)], [*wanted, *twice(expected, given)], strict=True
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("made_of", ["k is v", "v of k", "k of q"])
def test_inputs_that_depend_on_one_another(made_of: str) -> None:
    q, k, _ = made(H)

    def both(one: Callable[..., Tensor]) -> list[Tensor]:
        a = torch.sin(q) if made_of == "k of q" else k
        b = torch.tanh(a) if made_of == "v of k" else a
        return twice(one(q, a, b), [q] if made_of == "k of q" else [q, k])

    own = both(lambda q, k, v: Blockwise.apply(q, k, v, None, True, 0.3))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = both(
            lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        )
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("mask", "batch"),
    [
        (PADDED[:, :, :, :T].clone(), B),  # for every query
        (CAUSAL, B),  # for every example
        (torch.zeros(B, 1, T, T), B),  # of numbers
        (None, 1),  # one query for all examples
    ],
)
def test_what_it_does_not_state_goes_to_torch(
    mask: Tensor | None, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_BLOCK", 16)
    q, k, v = made(H)
    module = nn.Module()
    module.is_causal = False
    found, _ = attention.attend(module, q[:batch], k, v, mask, scaling=0.3)
    expected = scaled_dot_product_attention(q[:batch], k, v, mask, scale=0.3)
    torch.testing.assert_close(found.transpose(1, 2), expected)


def test_what_nobody_would_heed_is_refused() -> None:
    """Sparse attentions hand over which keys count, others a sink: no general function knows."""
    q, k, v = made(H)
    with pytest.raises(InputError, match="hands its attention 'indices'"):
        attention.attend(nn.Module(), q, k, v, None, indices=torch.zeros(1), position_ids=None)


def test_more_keys_than_queries() -> None:
    given = made(2, keys=T + 5)
    mask = torch.cat([torch.ones(T, 5, dtype=torch.bool), CAUSAL], 1)[None, None]
    q, k, v = given
    k, v = (one.repeat_interleave(3, 1) for one in (k, v))
    expected = scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(Blockwise.apply(*given, mask, False, D**-0.5), expected)


def test_a_query_that_may_look_nowhere_is_no_nan() -> None:
    y = Blockwise.apply(*made(2), torch.zeros(1, 1, T, T, dtype=torch.bool), False, 1.0)
    assert y.isfinite().all()


def test_only_what_trains_has_a_gradient() -> None:
    q, k, v = made(2)
    y = Blockwise.apply(q, k.detach(), v, None, True, 1.0)
    once = torch.autograd.grad(y.sum(), [q, v], retain_graph=True)
    for one, other in zip(
        once, torch.autograd.grad(y.sum(), [q, v], create_graph=True), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_in_bf16_it_is_as_near_to_the_truth_as_products_and_softmax() -> None:
    given = made(6, dtype=torch.bfloat16)
    exact = [one.detach().double().requires_grad_() for one in given]
    scale = D**-0.5

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT) * scale
        return scores.masked_fill(~CAUSAL, float("-inf")).softmax(-1) @ v

    def away(y: Tensor, inputs: list[Tensor]) -> Tensor:
        truth = plain(*exact)
        found = [y, *torch.autograd.grad(y.float().square().sum(), inputs)]
        wanted = [truth, *torch.autograd.grad(truth.square().sum(), exact)]
        return torch.stack([(a - b).norm() for a, b in zip(found, wanted, strict=True)])

    own = away(Blockwise.apply(*given, None, True, scale), given)
    assert (own < 1.5 * away(plain(*given), given)).all()


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
Made = tuple[nn.Module, dict[str, Any]]


def padded() -> dict[str, Tensor]:
    ids = torch.randint(1, 99, (3, 15))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def llama() -> Made:
    config = LlamaConfig(**SMALL, vocab_size=99, num_key_value_heads=2, pad_token_id=0)
    given = padded()
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    return LlamaForCausalLM(config), {**given, "labels": labels}


def bert() -> Made:
    still = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    model = BertForSequenceClassification(BertConfig(**SMALL, **still, vocab_size=99))
    return model, {**padded(), "labels": torch.tensor([0, 1, 0])}


def vit() -> Made:
    model = ViTForImageClassification(ViTConfig(**SMALL, image_size=16, patch_size=4))
    pictures = torch.randn(3, 3, 16, 16)
    return model, {"pixel_values": pictures, "labels": torch.tensor([0, 1, 0])}


@pytest.fixture
def calls(follow: Callable[[Any, str], list[Any]]) -> list[Any]:
    """Grows with every use of it."""
    return follow(attention, "_all")


@pytest.mark.parametrize(("length", "kept"), [(64, True), (65, False)])
def test_the_weights_of_short_texts_are_kept(
    length: int, kept: bool, follow: Callable[[Any, str], list[Any]]
) -> None:
    made_again = follow(Blockwise, "apply")
    q = torch.randn(1, 2, length, D, requires_grad=True)
    module = nn.Module()
    attention.attend(module, q, q, q, None, is_causal=True)[0].sum().backward()
    assert bool(made_again) is not kept


@pytest.mark.parametrize(("keys", "wide"), [(31, torch.float32), (32, torch.bfloat16)])
def test_few_keys_are_weighed_in_fp32(
    keys: int, wide: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda x, dim, dtype: seen.append(dtype) or softmax(x, dim, dtype)
    )
    q = torch.randn(1, 2, keys, D, dtype=torch.bfloat16)
    assert attention._all(q, q, q, None, False, 1.0).dtype == torch.bfloat16
    assert seen == [wide]


@pytest.mark.parametrize("short", [0, 64])
@pytest.mark.parametrize("make", [llama, bert, vit])
@pytest.mark.parametrize("method", [trimtab.LoRA(rank=2), trimtab.PrefixTuning(length=3)])
def test_on_whole_models(
    make: Callable[[], Made],
    method: trimtab.core.method.Method,
    short: int,
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_SHORT", short)
    torch.manual_seed(0)
    model, given = make()
    adapter = trimtab.attach(model.train(), method)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.1)
    trained = list(trimtab.parameters(model))
    expected = model(**given).loss
    gradients = torch.autograd.grad(expected, trained)
    assert not calls
    trimtab.kernels.blockwise(model)
    loss = model(**given).loss
    assert len(calls) == 2
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(torch.autograd.grad(loss, trained), gradients, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)
    with trimtab.kernels.disabled():
        model(**given)
    assert len(calls) == 2


def test_it_generates_the_same(calls: list[Any]) -> None:
    torch.manual_seed(0)
    model, given = llama()
    ids = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"].flip(1)}
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = model.eval().generate(**ids, **options)
    trimtab.kernels.blockwise(model)
    assert torch.equal(model.generate(**ids, **options), expected)
    assert calls


@pytest.mark.parametrize("block", [False, True], ids=["sdpa", "blockwise"])
@pytest.mark.parametrize("method", [trimtab.LoRA(rank=2), trimtab.PrefixTuning(length=3)])
def test_it_is_there_in_another_process(
    method: trimtab.core.method.Method, block: bool, tmp_path: Path
) -> None:
    """With the kernels, for a model that was pickled whole."""
    torch.manual_seed(0)
    model, given = llama()
    for parameter in trimtab.attach(model, method).parameters():
        nn.init.normal_(parameter, std=0.1)
    if block:
        trimtab.kernels.blockwise(model)
    torch.save([model.eval(), given, model(**given).loss.detach()], tmp_path / "whole")
    code = (
        "import sys, torch\n"
        "model, given, loss = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.testing.assert_close(model(**given).loss, loss)\n"
        "from trimtab.core import kernel\n"
        "assert kernel.find_loss() and kernel._kernels\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "whole"], check=True, timeout=120)


def test_what_has_no_such_attention_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be exchanged"):
        trimtab.kernels.blockwise(nn.Linear(2, 2))


compiled = pytest.mark.skipif(not cpu.has("attention"), reason="no compiled kernels, or no AVX-512")


@compiled
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("name", [*MASKS, "causal by a flag"])
@pytest.mark.parametrize("tokens", [1, 7, T, 150])
def test_the_compiled_one_is_attention(tokens: int, name: str, groups: int) -> None:
    """In bf16 with sums in fp32: as near to the exact one as its output can be."""
    torch.manual_seed(0)
    causal, mask = name == "causal by a flag", None if name == "causal by a flag" else MASKS[name]
    if mask is not None and tokens != T:
        mask = mask.repeat(1, 1, 5, 5)[..., :tokens, :tokens]
        mask = mask | torch.eye(tokens, dtype=torch.bool)  # everyone sees itself
    shapes = ((B, tokens, H, D), (B, tokens, groups, D), (B, tokens, groups, D))
    given = [torch.randn(shape).bfloat16().transpose(1, 2).requires_grad_() for shape in shapes]
    y = Compiled.apply(*given, mask, causal, 0.3)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, given, dy)
    exact = [one.detach().float().requires_grad_() for one in given]
    k, v = (one.repeat_interleave(H // groups, 1) for one in exact[1:])
    expected = scaled_dot_product_attention(exact[0], k, v, mask, is_causal=causal, scale=0.3)
    expected = expected.transpose(1, 2)
    slopes = torch.autograd.grad(expected, exact, dy.float())
    for one, other in zip((y, *found), (expected, *slopes), strict=True):
        assert (one.float() - other).norm() <= 0.006 * other.norm() + 1e-4


@compiled
def test_who_may_look_nowhere_looks_everywhere_when_compiled() -> None:
    mask = torch.zeros(1, 1, 5, 9, dtype=torch.bool)
    given = [torch.randn(1, 2, n, 6).bfloat16().requires_grad_() for n in (5, 9, 9)]
    y = Compiled.apply(*given, mask, False, 1.0)
    torch.testing.assert_close(
        y.transpose(1, 2).float(),
        given[2].float().mean(2, True).expand(1, 2, 5, 6),
        rtol=0.02,
        atol=0.02,
    )
    dv = torch.autograd.grad(y.float().sum(), given)[2]
    torch.testing.assert_close(dv.float(), torch.full((1, 2, 9, 6), 5 / 9), rtol=0.02, atol=0.01)


@compiled
def test_a_second_derivative_goes_past_the_compiled_one() -> None:
    given = [torch.randn(1, 2, 8, 6).bfloat16().requires_grad_() for _ in range(3)]
    found = twice(Compiled.apply(*given, None, True, 0.4), given)
    exact = [one.detach().float().requires_grad_() for one in given]
    expected = twice(Blockwise.apply(*exact, None, True, 0.4), exact)
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).norm() <= 0.05 * other.norm()
