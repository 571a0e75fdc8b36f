"""What the conformance tests run over: architectures and methods, as data.

A new method file is covered from the registry; a new architecture is one entry of `ARCHITECTURES`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import Adapter
from trimtab.core.method import Additive, Method, Selection, Transform

VOCAB = 100
INIT = 0.2  # ten times the usual spread: in a tiny model every site must matter to the output


@dataclass(frozen=True)
class Architecture:
    """A tiny random model, always the same one, and one batch for it."""

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]]

    def model(self) -> nn.Module:
        return copy.deepcopy(_built(self))


@functools.cache
def _built(architecture: Architecture) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture.make().eval()
        with torch.no_grad():  # no bias is zero and no gain one, as in a trained model
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape))
        return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def _text() -> dict[str, Tensor]:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": tokens(2, 7), "attention_mask": mask}


BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": INIT,
    "num_labels": 3,
}


def bert() -> nn.Module:
    return hf.BertForSequenceClassification(hf.BertConfig(**BERT))


def gpt2(**changes: Any) -> nn.Module:
    sizes = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = {**sizes, **dropout, **ends, "initializer_range": INIT, **changes}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**config))


def llama() -> nn.Module:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=INIT,
        )
    )


def t5() -> nn.Module:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCAB,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


ARCHITECTURES = [
    Architecture("bert", bert, lambda: {**_text(), "labels": torch.tensor([0, 2])}),
    Architecture("gpt2", gpt2, lambda: {**_text(), "labels": tokens(2, 7)}),
    Architecture("llama", llama, lambda: {**_text(), "labels": tokens(2, 7)}),
    Architecture("t5", t5, lambda: {**_text(), "labels": tokens(2, 5, seed=1)}),
]
METHODS: list[Method] = [trimtab.core.registry.build(name, {}) for name in trimtab.methods()]


def by_name(name: str) -> Architecture:
    return next(one for one in ARCHITECTURES if one.name == name)


def affine(method: Method) -> bool:
    """Whether the method states a law over the site's matrix."""
    return isinstance(method, Additive | Transform)


def pairs(
    methods: Iterable[Method] = METHODS, architectures: Iterable[Architecture] = ARCHITECTURES
) -> pytest.MarkDecorator:
    """Every method on every architecture, as arguments `method` and `architecture`."""
    product = [(one, other) for other in architectures for one in methods]
    return pytest.mark.parametrize(
        ("method", "architecture"), product, ids=[f"{m.name}-{a.name}" for m, a in product]
    )


def rotation(methods: Iterable[Method] = METHODS) -> pytest.MarkDecorator:
    """Each method on one architecture in turn, for what is slow."""
    product = [(m, ARCHITECTURES[i % len(ARCHITECTURES)]) for i, m in enumerate(methods)]
    return pytest.mark.parametrize(
        ("method", "architecture"), product, ids=[f"{m.name}-{a.name}" for m, a in product]
    )


SITED = [method for method in METHODS if not isinstance(method, Selection)]
AFFINE = [method for method in METHODS if affine(method)]


def attach(model: nn.Module, method: Method, name: str = "default", **options: Any) -> Adapter:
    """Attach, or skip the test where the architecture has no site for the method."""
    try:
        return trimtab.attach(model, method, name=name, **options)
    except trimtab.SiteNotFound as error:
        pytest.skip(str(error))


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def perturb(adapter: Adapter, seed: int = 1, by: float = 0.1) -> None:
    """Move every trained parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((by * noise).to(parameter.dtype))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    """The same keys in the same order, and the same bits."""
    after = model.state_dict()
    assert list(after) == list(before)
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert changed == []


def assert_differs(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() > 1e-3
