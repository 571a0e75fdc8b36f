"""A frozen head's logits are never held where only their loss is asked for, and are there where
they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import trimtab
from trimtab.core.logits import Logits
from trimtab.kernels import cross_entropy as chunked

VOCAB = 1500
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0,
            attn_pdrop=0,
            embd_pdrop=0,
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCAB,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            dropout_rate=0,
            decoder_start_token_id=0,
        )
    ),
}
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def own(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """The loss that the model computes."""
    return model(input_ids=ids, labels=labels).loss


def of_a_loop(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    logits = model(input_ids=ids, **extra).logits[:, :-1].float()
    return cross_entropy(logits.reshape(-1, VOCAB), labels[:, 1:].reshape(-1), reduction="sum")


@pytest.fixture
def multiplied(follow: Callable[[Any, str], list[Any]]) -> list[Any]:
    """Grows whenever logits become numbers."""
    return follow(Logits, "numbers")


def made(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = MODELS[name]().to(dtype).train()
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2))
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(VOCAB, (3, 9))
    labels = ids.clone()
    labels[0, :5] = labels[2, 7:] = -100
    return model, ids, labels


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, trimtab.parameters(model)))


@pytest.mark.parametrize("loss", [own, of_a_loop])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [VOCAB * 4, 1 << 22], ids=["chunks", "whole"])
def test_loss_and_gradients_are_those_of_the_logits(
    name: str, loss: Loss, chunk: int, monkeypatch: pytest.MonkeyPatch, multiplied: list[Any]
) -> None:
    monkeypatch.setattr(chunked, "_CHUNK", chunk)
    model, ids, labels = made(name, torch.float32)
    found = loss(model, ids, labels)
    assert found.grad_fn is not None
    assert multiplied == []
    fused = gradients(model, found)
    with trimtab.kernels.disabled():
        expected = loss(model, ids, labels)
        whole = gradients(model, expected)
    torch.testing.assert_close(found, expected)
    for one, other in zip(fused, whole, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_second_derivatives_are_those_of_the_logits(multiplied: list[Any]) -> None:
    model, ids, labels = made("llama", torch.float32)
    model.set_attn_implementation("eager")  # the others have no second derivative

    def twice() -> list[Tensor]:
        first = torch.autograd.grad(
            own(model, ids, labels), list(trimtab.parameters(model)), create_graph=True
        )
        return gradients(model, sum((one.square().sum() for one in first), torch.zeros(())))

    fused = twice()
    assert multiplied == []
    with trimtab.kernels.disabled():
        for one, other in zip(fused, twice(), strict=True):
            assert (one - other).norm() <= 1e-4 * other.norm()


def test_switched_off_before_the_loss_it_takes_the_numbers(multiplied: list[Any]) -> None:
    model, ids, labels = made("llama", torch.float32)
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    with trimtab.kernels.disabled():
        cross_entropy(logits, labels[:, 1:].flatten())
    assert multiplied


def test_in_bf16_it_is_as_near_to_the_truth_as_the_logits_are() -> None:
    """Over several draws: rounding falls one way or the other."""

    def away(found: list[Tensor], exact: list[Tensor]) -> float:
        pairs = zip(found, exact, strict=True)
        return sum(float((one - other).norm() ** 2) for one, other in pairs)

    fused = plain = 0.0
    for seed in range(6):
        model, ids, labels = made("llama", torch.bfloat16, seed)
        exact = gradients(double := copy.deepcopy(model).double(), own(double, ids, labels))
        fused += away(gradients(model, own(model, ids, labels)), exact)
        with trimtab.kernels.disabled():
            plain += away(gradients(model, own(model, ids, labels)), exact)
    assert fused**0.5 < 1.2 * plain**0.5


def test_whoever_asks_for_numbers_sees_them(multiplied: list[Any]) -> None:
    model, ids, _ = made("llama", torch.float32)
    logits = model(input_ids=ids).logits
    assert isinstance(logits, Logits)
    assert logits.shape == (*ids.shape, VOCAB)
    assert logits.size(-1) == logits.shape[-1] == VOCAB
    assert (logits.dtype, logits.ndim, logits.requires_grad) == (torch.float32, 3, True)
    assert multiplied == []
    with trimtab.kernels.disabled():
        expected = model(input_ids=ids).logits
    for view in (
        lambda y: y,
        lambda y: y.softmax(-1),
        lambda y: y[:, 1:4],
        lambda y: y[0],
        lambda y: y[..., :7],
        lambda y: y[:, :, 3:5],
        lambda y: y[:, torch.tensor([1, 2])],
        lambda y: y.view(-1, 3),
        lambda y: y.view(VOCAB, -1),
        lambda y: 2 * y + y.new_ones(()),
        lambda y: torch.cat([y, y]),
        lambda y: y.to(torch.float64, copy=True),
        lambda y: y.argmax(-1),
        lambda y: torch.tensor(y.tolist()),
    ):
        found = view(model(input_ids=ids).logits)
        found = found.numbers() if isinstance(found, Logits) else found
        torch.testing.assert_close(found, view(expected))
    mean = model(input_ids=ids).logits.square().mean()
    for one, other in zip(
        gradients(model, mean), gradients(model, expected.square().mean()), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"weight": torch.rand(VOCAB)},
        {"reduction": "none"},
        {"ignore_index": 7},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_of_cross_entropy(options: dict[str, Any]) -> None:
    model, ids, _ = made("llama", torch.float32)
    target = ids.flatten()
    target[4] = 7

    def loss() -> Tensor:
        return cross_entropy(model(input_ids=ids).logits.flatten(0, 1), target, **options).sum()

    found = gradients(model, loss())
    with trimtab.kernels.disabled():
        expected = gradients(model, loss())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_label_beyond_the_vocabulary_is_an_error() -> None:
    model, ids, labels = made("llama", torch.float32)
    labels[1, 3] = VOCAB
    with pytest.raises(IndexError):
        own(model, ids, labels)


def test_where_no_label_counts_the_loss_is_what_torch_says() -> None:
    model, ids, labels = made("llama", torch.float32)
    assert own(model, ids, torch.full_like(labels, -100)).isnan()


def unfrozen(model: nn.Module) -> None:
    model.lm_head.weight.requires_grad_(True)


def evaluated(model: nn.Module) -> None:
    model.eval()


@pytest.mark.parametrize("change", [unfrozen, evaluated], ids=lambda change: change.__name__)
def test_it_stands_back(change: Callable[[nn.Module], None]) -> None:
    model, ids, _ = made("llama", torch.float32)
    change(model)
    assert type(model(input_ids=ids).logits) is Tensor


def test_it_goes_with_the_last_adapter() -> None:
    model, ids, _ = made("llama", torch.float32)
    trimtab.detach(model, "default")
    assert type(model.requires_grad_(True)(input_ids=ids).logits) is Tensor
    assert not model.lm_head._forward_pre_hooks


def test_a_head_with_an_adapter_gives_numbers() -> None:
    torch.manual_seed(0)
    model = MODELS["llama"]().train()
    trimtab.attach(model, trimtab.LoRA(), ["lm_head", "attention"])
    ids = torch.randint(VOCAB, (2, 5))
    loss = own(model, ids, ids)
    fused = gradients(model, loss)
    with trimtab.kernels.disabled():
        whole = gradients(model, own(model, ids, ids))
    for one, other in zip(fused, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class Exp(torch.autograd.Function):
    """What C++ and libraries of kernels do: it sees neither torch functions nor their graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return dy * x.exp()


def seen_without_gradients(y: Tensor) -> Tensor:
    with torch.no_grad():
        y.argmax(-1)
    return y.square().mean()


def seen_in_inference(y: Tensor) -> Tensor:
    with torch.inference_mode():
        y.argmax(-1)
    return y.square().mean()


def cut_off(y: Tensor) -> Tensor:
    with torch.no_grad():
        still = y.to(torch.float64)
    return (still * y.square()).mean()


def written_through_a_view(y: Tensor) -> Tensor:
    flat, rows = y.view(-1, VOCAB), y[:, :-1]
    y[..., 5] = 3.0
    rows.mul_(2)
    return flat.square().mean() + y.square().mean() + cross_entropy(flat, torch.full((27,), 5))


def under_autocast(y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return cross_entropy(y.flatten(0, 1), torch.arange(27)) + y.square().mean()


@pytest.mark.parametrize(
    "use",
    [
        seen_without_gradients,
        seen_in_inference,
        cut_off,
        written_through_a_view,
        under_autocast,
        lambda y: Exp.apply(y).mean(),
        lambda y: Exp.apply(y[:, 1:].double()).mean(),
        lambda y: checkpoint(lambda z: z.softmax(-1).square().mean(), y, use_reentrant=True),
        lambda y: torch.vmap(lambda z: z.square().mean())(y).sum(),
        lambda y: (torch.func.grad(lambda z: (z**3).sum())(y) * y).mean(),
        lambda y: y.reshape(shape=(-1, VOCAB)).square().mean() * y.size(dim=-1),
        lambda y: y[:, :, :7, ...].square().mean(),
        lambda y: y.view(torch.int32).sum() + y.sum(),
    ],
    ids=lambda use: use.__name__,
)
def test_gradients_are_those_of_the_numbers(use: Callable[[Tensor], Tensor]) -> None:
    model, ids, _ = made("llama", torch.float32)
    logits = model(input_ids=ids).logits
    assert isinstance(logits, Logits)
    (loss := use(logits)).backward()
    found = [parameter.grad for parameter in trimtab.parameters(model)]
    model.zero_grad()
    with trimtab.kernels.disabled():
        expected = use(model(input_ids=ids).logits)
        expected.backward()
    whole = [parameter.grad for parameter in trimtab.parameters(model)]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_was_written_into_meanwhile_is_an_error() -> None:
    model, ids, _ = made("llama", torch.float32)
    logits = model(input_ids=ids).logits
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    for ask in (lambda: logits.sum(), lambda: cross_entropy(logits.view(-1, VOCAB), ids.flatten())):
        with pytest.raises(trimtab.TrimtabError, match="written into"):
            ask()


def test_hooks_of_the_heads_backward_pass_run() -> None:
    model, ids, labels = made("llama", torch.float32)
    seen: list[Any] = []
    model.lm_head.register_full_backward_hook(lambda *args: seen.append(args[2][0].shape))
    own(model, ids, labels).backward()
    assert seen == [(*ids.shape, VOCAB)]


def test_a_head_that_trains_what_it_multiplies_by_gives_numbers() -> None:
    model, ids, _ = made("llama", torch.float32)
    scale = nn.Parameter(torch.ones(()))
    head = model.lm_head
    head.forward = lambda h: nn.functional.linear(h, head.weight * scale, head.bias)
    model(input_ids=ids).logits.square().mean().backward()
    assert scale.grad is not None
    scale.grad = None
    cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten()).backward()
    assert scale.grad is not None
