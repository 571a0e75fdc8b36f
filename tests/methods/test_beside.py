"""What the papers say of networks beside the base, and of their fusion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prompted import batch, logits, tiny
from torch import nn

import trimtab
from trimtab.core.adapter import record
from trimtab.core.method import Method

BESIDE = pytest.mark.parametrize(
    "method", [trimtab.Side(), trimtab.Knowledge(width=16)], ids=lambda m: m.name
)
NAMES = pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gpt2", "t5", "bart", "bert", "roberta", "albert", "distilbert"]
)


def perturb(adapter: Any) -> None:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))


class Graph:
    """The modules whose outputs a backward pass would go through."""

    def __init__(self, model: nn.Module) -> None:
        self.inside: list[str] = []
        for name, module in model.named_modules():
            if ".deltas" not in name and name:
                module.register_forward_hook(self.note(name))

    def note(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found = output if isinstance(output, torch.Tensor) else None
            if found is not None and found.grad_fn is not None:
                self.inside.append(name)

        return hook


@BESIDE
@NAMES
def test_starts_at_the_base_and_then_differs(name: str, method: Method) -> None:
    model, inputs = tiny(name), batch(name)
    base = logits(model, inputs)
    adapter = trimtab.attach(model, method)
    torch.testing.assert_close(logits(model, inputs), base, rtol=0, atol=1e-5)
    perturb(adapter)
    assert (logits(model, inputs) - base).abs().max() > 1e-3


@BESIDE
@NAMES
def test_nothing_of_the_base_is_on_the_way_back(name: str, method: Method) -> None:
    """Ladder side tuning, section 3.2: only what reads the network's output takes part."""
    model, inputs = tiny(name).train(), batch(name)
    to = "decoder" if name in ("t5", "bart") else None  # an encoder's is read by the decoder
    perturb(trimtab.attach(model, method, to))
    graph = Graph(model)
    model(**inputs).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trimtab.parameters(model))
    blocks = [name for name in graph.inside if any(part.isdigit() for part in name.split("."))]
    assert blocks == []
    assert graph.inside, "the head reads the network's output"


@BESIDE
def test_a_method_in_the_blocks_is(method: Method) -> None:
    """A control of the test above: with LoRA in the blocks the way back leads through them."""
    model = tiny("bert").train()
    trimtab.attach(model, method, name="beside")
    trimtab.attach(model, trimtab.LoRA(), name="within")
    trimtab.activate(model, trimtab.Stack("beside", "within"))
    graph = Graph(model)
    model(**batch("bert"))
    assert any("layer.0" in name for name in graph.inside)


def test_a_gate_chooses_between_block_and_rung() -> None:
    """With every gate shut but the first, only the first block is read; open, only the last."""
    model, inputs = tiny("bert"), batch("bert")
    adapter = trimtab.attach(model, trimtab.Side())
    perturb(adapter)
    delta = adapter.members[0]
    taps = [torch.randn(1, 4, 32) for _ in range(3)]
    y = torch.zeros(1, 4, 32)
    call = record(model).switch.call

    def ladder(gate: list[float], change: int) -> bool:
        with torch.no_grad():
            delta.gate.copy_(torch.tensor(gate))
            values = delta.values(torch.float32)
            first = delta.method.edit(values, taps, y, call)
            other = [t + torch.randn(32) * (i == change) for i, t in enumerate(taps)]
            return not torch.equal(first, delta.method.edit(values, other, y, call))

    assert [ladder([9.0, -9.0, -9.0], i) for i in range(3)] == [True, False, False]
    assert [ladder([9.0, 9.0, 9.0], i) for i in range(3)] == [False, False, True]
    assert logits(model, inputs).isfinite().all()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_knowledge_looks_where_the_base_looks(name: str) -> None:
    """A decoder's does not look ahead; padding is never looked at."""
    model, inputs = tiny(name), batch(name)
    perturb(trimtab.attach(model, trimtab.Knowledge(width=16)))
    stack = model.base_model
    with torch.no_grad():
        before = stack(**inputs).last_hidden_state
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][1, 5:] = 9  # padding
        padded = stack(**inputs).last_hidden_state
        inputs["input_ids"][0, -1] = 9  # the last token
        later = stack(**inputs).last_hidden_state
    torch.testing.assert_close(padded[1, :5], before[1, :5], rtol=1e-5, atol=1e-5)
    seen = (later[0, :-1] - before[0, :-1]).abs().max() > 1e-3
    assert seen == (name == "bert")


def test_knowledge_refuses_a_cache() -> None:
    model = tiny("llama")
    perturb(trimtab.attach(model, trimtab.Knowledge(width=16)))
    ids = batch("llama")["input_ids"]
    options = {"max_new_tokens": 3, "do_sample": False}
    with pytest.raises(trimtab.InputError, match="use_cache=False"):
        model.generate(ids, **options)
    assert model.generate(ids, use_cache=False, **options).shape == (2, 10)


def test_side_generates_with_a_cache_as_without() -> None:
    model = tiny("llama")
    perturb(trimtab.attach(model, trimtab.Side()))
    ids = batch("llama")["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, **options), expected)


@BESIDE
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_fusion_of_networks_beside(name: str, method: Method) -> None:
    """K-Adapter: one for each source of knowledge, put together; they stay as they are."""
    model, inputs = tiny(name), batch(name)
    states = [_states(model, inputs)]
    for one in "ab":
        perturb(trimtab.attach(model, method, name=one))
        states.append(_states(model, inputs))
    fusion = trimtab.attach(model, trimtab.Fusion(over=("a", "b"), temperature=0.5), name="f")
    perturb(fusion)
    found, (delta,) = _states(model, inputs), fusion.members
    y, z = states[0], torch.stack(states[1:], dim=-2)
    weights = torch.einsum("btd,btkd->btk", y @ delta.Q.T, z @ delta.K.T).div(0.5).softmax(-1)
    expected = torch.einsum("btk,btkd->btd", weights, z @ delta.V.T)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    trimtab.activate(model, trimtab.Fuse("a", "b", by="f"))
    assert torch.equal(_states(model, inputs), found)
    assert [id(p) for p in trimtab.parameters(model)] == [id(p) for p in fusion.parameters()]
    model.train()(**inputs).logits.mean().add(trimtab.penalty(model)).backward()
    assert all(p.grad is not None for p in fusion.parameters())
    parts = [p for one in "ab" for p in record(model).adapter(one).parameters()]
    assert all(p.grad is None and not p.requires_grad for p in parts)


@torch.no_grad()
def _states(model: Any, inputs: Any) -> torch.Tensor:
    return model.base_model(**inputs).last_hidden_state


def test_what_fusion_refuses() -> None:
    model = tiny("bert")
    trimtab.attach(model, trimtab.PromptTuning(length=2), name="p")
    trimtab.attach(model, trimtab.PrefixTuning(length=2), name="x")
    with pytest.raises(trimtab.InputError, match="puts something before the input"):
        trimtab.attach(model, trimtab.Fusion(over=("p",)), name="f")
    with pytest.raises(trimtab.InputError, match="and this is attention"):
        trimtab.attach(model, trimtab.Fusion(over=("x",)), name="f")
    with pytest.raises(trimtab.InputError, match="over="):
        trimtab.attach(model, trimtab.Fusion(), name="f")


def test_fusion_starts_at_the_mean_and_is_held_near_the_identity() -> None:
    """Appendix: V starts at I, with a penalty of 0.01 ‖V - I‖²; queries and keys are small."""
    model, inputs = tiny("bert"), batch("bert")
    for one in "ab":
        perturb(trimtab.attach(model, trimtab.LoRA(), "*.0.attention.self.query", name=one))
    fusion = trimtab.attach(model, trimtab.Fusion(over=("a", "b")), name="f")
    (delta,) = fusion.members
    assert trimtab.penalty(model) == 0
    assert delta.Q.std() < 0.03
    assert torch.equal(delta.V, torch.eye(32))
    with torch.no_grad():
        delta.Q.zero_()
    mean = logits(model, inputs)
    trimtab.activate(model, trimtab.Mix(a=0.5, b=0.5))
    torch.testing.assert_close(logits(model, inputs), mean, rtol=1e-4, atol=1e-5)
    trimtab.activate(model, "f")
    with torch.no_grad():
        delta.V.add_(0.1)
    torch.testing.assert_close(trimtab.penalty(model), torch.tensor(0.01 * 0.01 * 32 * 32))
