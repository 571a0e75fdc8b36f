"""Law 6, first half: an adapted model copies, pickles, compiles; runs in autocast and in bf16."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import cases
import pytest
import torch
from torch import nn

import trimtab
from trimtab.core.method import Method


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=lambda f: f.__name__)
@cases.pairs()
def test_a_copy_is_whole_and_its_own(
    method: Method, architecture: cases.Architecture, copied: Callable[[nn.Module], nn.Module]
) -> None:
    model, batch = architecture.model(), architecture.batch()
    base = cases.logits(model, batch)
    cases.perturb(cases.attach(model, method))
    outputs = cases.logits(model, batch)
    other = copied(model)
    assert torch.equal(cases.logits(other, batch), outputs)
    theirs = {id(p) for p in model.parameters()}
    assert not any(id(p) in theirs for p in trimtab.parameters(other))
    cases.loss(other, batch).backward()
    assert all(p.grad is not None for p in trimtab.parameters(other))
    assert cases.gradients(model) == {}
    trimtab.activate(other, None)
    assert torch.equal(cases.logits(other, batch), base)
    assert torch.equal(cases.logits(model, batch), outputs)
    trimtab.detach(other)
    assert torch.equal(cases.logits(model, batch), outputs)


# Dynamo itself does what it warns of, wherever it meets an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@cases.rotation()
def test_compiles_without_a_break(method: Method, architecture: cases.Architecture) -> None:
    model, inputs = architecture.model(), architecture.batch()
    labels = inputs.pop("labels")
    if architecture.name == "t5":
        inputs["decoder_input_ids"] = labels
    cases.perturb(cases.attach(model, method))
    plain = model(**inputs).logits
    plain.square().mean().backward()
    gradients = {name: g.clone() for name, g in cases.gradients(model).items()}
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = compiled(**inputs).logits
    torch.testing.assert_close(outputs, plain, rtol=1e-5, atol=1e-5)
    outputs.square().mean().backward()
    assert cases.gradients(model).keys() == gradients.keys()
    for name, gradient in cases.gradients(model).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    trimtab.activate(compiled, None)
    assert not any(p.requires_grad for p in model.parameters())


@cases.pairs()
def test_autocast(method: Method, architecture: cases.Architecture) -> None:
    """Activations go down to bf16, the trained parameters and their gradients stay in fp32."""
    model, batch = architecture.model(), architecture.batch()
    cases.perturb(cases.attach(model, method))
    exact = cases.logits(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    assert outputs.logits.dtype == torch.bfloat16
    assert _cosine(outputs.logits, exact) > 0.99
    outputs.loss.backward()
    for parameter in trimtab.parameters(model):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@cases.pairs(cases.SITED)
def test_a_bf16_base_has_fp32_masters(method: Method, architecture: cases.Architecture) -> None:
    model, exact, batch = architecture.model(), architecture.model(), architecture.batch()
    model = model.to(torch.bfloat16)
    cases.perturb(cases.attach(model, method))
    cases.perturb(cases.attach(exact, method))
    exact.load_state_dict({name: t.float() for name, t in model.state_dict().items()})
    outputs = model(**batch)
    assert outputs.logits.dtype == torch.bfloat16
    assert _cosine(outputs.logits, cases.logits(exact, batch)) > 0.99
    outputs.loss.backward()
    for parameter in trimtab.parameters(model):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
    trained = {id(p) for p in trimtab.parameters(model)}
    rest = {p.dtype for p in model.parameters() if id(p) not in trained}
    assert rest == {torch.bfloat16}


@cases.pairs(cases.AFFINE)
def test_small_steps_move_a_bf16_model(method: Method, architecture: cases.Architecture) -> None:
    """A factor of 1.003 is one in bf16; used in its own precision it is felt."""
    model, batch = architecture.model().to(torch.bfloat16), architecture.batch()
    before = cases.logits(model, batch)
    adapter = cases.attach(model, method)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.003)
    assert not torch.equal(cases.logits(model, batch), before)


@cases.pairs(cases.SITED)
def test_a_move_to_bf16_keeps_the_masters(method: Method, architecture: cases.Architecture) -> None:
    """`.to(bfloat16)` after attaching: what was learnt is not rounded away."""
    model, batch = architecture.model(), architecture.batch()
    adapter = cases.attach(model, method)
    cases.perturb(adapter)
    before = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    model.to(torch.bfloat16)
    assert all(torch.equal(t, before[name]) for name, t in adapter.tensors().items())
    assert cases.logits(model, batch).dtype == torch.bfloat16
    model.to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert cases.logits(model, batch).dtype == torch.float64


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a.detach().float().flatten(), b.flatten(), dim=0).item()
