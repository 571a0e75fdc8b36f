"""A prefix with HF PEFT's numbers gives HF PEFT's outputs: positions, relative biases, grouped
queries, both attention functions."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from prompted import batch, logits, put_prefix, tiny, tokens

import trimtab

# HF PEFT itself calls what transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASK = {"t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS", "roberta": "SEQ_CLS"}
TO = {"t5": "re:decoder.*SelfAttention", "bart": "re:.*decoder.*self_attn"}
N = 4
NAMES = pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert", "roberta", "t5", "bart"])


def both(name: str, attention: str = "sdpa", **more: Any) -> tuple[Any, Any, Any]:
    """(HF PEFT's model, ours with the same prefix, our adapter)."""
    task = TASK.get(name, "CAUSAL_LM")
    config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=N, **more)
    theirs = peft.get_peft_model(tiny(name, attn_implementation=attention), config).eval()
    ours = tiny(name, attn_implementation=attention)
    adapter = trimtab.attach(ours, trimtab.PrefixTuning(length=N), TO.get(name))
    put_prefix(
        adapter, theirs.get_prompt_embedding_to_save("default"), 1 + (task == "SEQ_2_SEQ_LM")
    )
    return theirs, ours, adapter


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@NAMES
def test_equal_outputs(name: str, attention: str) -> None:
    theirs, ours, _ = both(name, attention)
    inputs = batch(name)
    real = inputs["attention_mask"].bool()
    expected, found = logits(theirs, inputs), logits(ours, inputs)
    if name in ("llama", "qwen3", "gpt2"):  # what stands at padding is nobody's
        expected, found = expected[real], found[real]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    trimtab.activate(ours, None)
    base = logits(ours, inputs)
    assert (base[real] if found.ndim < base.ndim else base).sub(found).abs().max() > 1e-2


@NAMES
def test_equal_gradients(name: str) -> None:
    theirs, ours, adapter = both(name)
    inputs = batch(name)
    keep = inputs["attention_mask"] if name in ("llama", "qwen3", "gpt2") else None
    for model in (theirs, ours):
        out = model(**inputs).logits
        (out if keep is None else out[keep.bool()]).square().mean().backward()
    gradient = theirs.prompt_encoder.default.embedding.weight.grad
    total = sum(t.grad.square().sum() for _, d in adapter.deltas() for t in (d.K, d.V))
    torch.testing.assert_close(
        total if name not in TO else _summed(adapter), gradient.square().sum(), rtol=1e-4, atol=0
    )


def _summed(adapter: Any) -> torch.Tensor:
    """Layers that share one part of HF PEFT's tensor add up."""
    layers = [torch.stack([d.K.grad, d.V.grad]) for _, d in adapter.deltas()]
    parts: dict[int, torch.Tensor] = {}
    for i, gradient in enumerate(layers):
        key = 2 * i % len(layers)
        parts[key] = parts.get(key, torch.zeros(())) + gradient
    return torch.stack(list(parts.values())).square().sum()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "t5", "bart"])
def test_equal_tokens(name: str) -> None:
    theirs, ours, _ = both(name)
    options = {"max_new_tokens": 8, "do_sample": False}
    mask = torch.ones(2, 6, dtype=torch.long)
    inputs = {"input_ids": tokens(2, 6), "attention_mask": mask}
    assert torch.equal(ours.generate(**inputs, **options), theirs.generate(**inputs, **options))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert", "roberta"])
def test_the_network_that_makes_a_prefix(name: str) -> None:
    """The same weights, the same keys and values, before every layer."""
    theirs, _, _ = both(name, prefix_projection=True, encoder_hidden_size=24)
    ours = tiny(name)
    adapter = trimtab.attach(ours, trimtab.PrefixTuning(length=N, projection=24))
    encoder, shared = theirs.prompt_encoder.default, adapter.shared["prefix"]
    with torch.no_grad():
        shared.E.copy_(encoder.embedding.weight)
        shared.W1.copy_(encoder.transform[0].weight)
        shared.b1.copy_(encoder.transform[0].bias)
        shared.W2.copy_(encoder.transform[2].weight.view_as(shared.W2))
        shared.b2.copy_(encoder.transform[2].bias.view_as(shared.b2))
    real = batch(name)["attention_mask"].bool()
    expected, found = logits(theirs, batch(name)), logits(ours, batch(name))
    if found.ndim == 3:
        expected, found = expected[real], found[real]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
