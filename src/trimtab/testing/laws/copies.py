"""Law 6, first half: an adapted model copies, pickles and compiles, runs in autocast, and in bf16
with masters in fp32."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.adapt import activate, detach
from trimtab.core.method import Method, Selection
from trimtab.core.training import parameters
from trimtab.testing.architectures import Architecture
from trimtab.testing.trial import (
    NotApplicable,
    NotHere,
    Trial,
    assert_near,
    assert_same,
    ensure,
    gradients,
)


def copies_are_whole(method: Method, architecture: Architecture) -> None:
    """A deep copy computes the same and is independent."""
    _copied(method, architecture, copy.deepcopy)


def pickles_are_whole(method: Method, architecture: Architecture) -> None:
    """So is what `torch.save` writes and `torch.load` reads."""
    _copied(method, architecture, _pickled)


def _pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _copied(method: Method, architecture: Architecture, copied: Any) -> None:
    trial = Trial(method, architecture)
    base = trial.outputs()
    trial.perturbed()
    outputs = trial.outputs()
    other = copied(trial.model)
    assert_same(trial.outputs(other), outputs, "the copy's outputs")
    theirs = {id(p) for p in trial.model.parameters()}
    ensure(not any(id(p) in theirs for p in parameters(other)), "the copy shares its parameters")
    trial.loss(other).backward()
    ensure(any(p.grad is not None for p in parameters(other)), "the copy does not train")
    ensure(gradients(trial.model) == {}, "training the copy reaches the model")
    activate(other, None)
    assert_same(trial.outputs(other), base, "the copy without its adapter, against the base")
    assert_same(trial.outputs(), outputs, "the model after its copy was switched")
    detach(other, "default")
    assert_same(trial.outputs(), outputs, "the model after its copy lost its adapter")


def compiles_without_a_break(method: Method, architecture: Architecture) -> None:
    """`torch.compile(fullgraph=True)` gives the same outputs and gradients."""
    trial = Trial(method, architecture)
    trial.batch.pop("return_loss", None)
    labels = trial.batch.pop("labels", None)
    if getattr(trial.model.config, "is_encoder_decoder", False):
        trial.batch.setdefault("decoder_input_ids", labels)
    trial.perturbed()
    plain, expected = _outputs_and_gradients(trial, trial.model)
    torch.compiler.reset()
    with warnings.catch_warnings():  # dynamo does what it warns of, at any autograd function
        warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
        compiled = torch.compile(trial.model, fullgraph=True, backend="aot_eager")
        try:
            outputs, found = _outputs_and_gradients(trial, compiled)  # type: ignore[arg-type]
        except torch._dynamo.exc.Unsupported as error:
            if _base_breaks(trial):
                raise NotHere("the base itself has no full graph") from None
            raise AssertionError(f"the graph breaks: {str(error).splitlines()[0]}") from error
    assert_near(outputs, plain, "the compiled outputs", 1e-5)
    ensure(found.keys() == expected.keys(), "other parameters have gradients when compiled")
    for name, gradient in found.items():
        assert_near(gradient, expected[name], f"the compiled gradient of {name}")


def _outputs_and_gradients(trial: Trial, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    outputs = trial.read(model)
    outputs.square().mean().backward()
    found = gradients(trial.model)
    trial.model.zero_grad()
    return outputs.detach(), found


def _base_breaks(trial: Trial) -> bool:
    torch.compiler.reset()
    compiled = torch.compile(trial.architecture.model(), fullgraph=True, backend="eager")
    try:
        trial.architecture.read(compiled, trial.batch)  # type: ignore[arg-type]
    except torch._dynamo.exc.Unsupported:
        return True
    return False


def runs_in_autocast(method: Method, architecture: Architecture) -> None:
    """Activations go down to bf16, the trained parameters and their gradients stay in fp32."""
    trial = Trial(method, architecture)
    trial.perturbed()
    exact = trial.outputs()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = trial.outputs()
    _close(outputs, exact, "the outputs in autocast", trial)
    with torch.autocast("cpu", torch.bfloat16):
        loss = trial.loss()
    loss.backward()
    _masters_in_fp32(trial)


def base_in_bf16(method: Method, architecture: Architecture) -> None:
    """Over a bf16 base the parameters and their gradients are fp32; a later `.to(bfloat16)` rounds
    nothing that was learnt."""
    if isinstance(method, Selection):
        raise NotApplicable("it trains the base's own parameters, in the base's precision")
    if method.base:
        raise NotApplicable("its base is codes, which are those of no other precision")
    trial, exact = Trial(method, architecture, torch.bfloat16), Trial(method, architecture)
    trial.perturbed()
    exact.perturbed()
    exact.model.load_state_dict({n: _up(t) for n, t in trial.model.state_dict().items()})
    outputs = trial.outputs()
    ensure(outputs.dtype == torch.bfloat16, f"the outputs are {outputs.dtype} over a bf16 base")
    _close(outputs, exact.outputs(), "the outputs over a bf16 base", exact)
    trial.loss().backward()
    _masters_in_fp32(trial)
    own = {name for name, _ in trial.model.named_parameters() if ".deltas." not in f".{name}"}
    rest = {p.dtype for name, p in trial.model.named_parameters() if name in own}
    ensure(rest == {torch.bfloat16}, f"the base's parameters are {rest}")


def moves_keep_masters(method: Method, architecture: Architecture) -> None:
    """`.to(bfloat16)` after attaching rounds nothing that was learnt; `.to(float64)` moves all."""
    if isinstance(method, Selection):
        raise NotApplicable("it trains the base's own parameters, in the base's precision")
    trial = Trial(method, architecture)
    adapter = trial.perturbed()
    before = {name: p.detach().clone() for name, p in adapter.tensors().items() if p.requires_grad}
    for dtype in (torch.bfloat16, torch.float64):
        trial.model.to(dtype)
        trial.dtype = dtype
        ensure(trial.outputs().dtype == dtype, f"after a move to {dtype} the outputs are not")
        held = adapter.tensors()
        changed = [name for name, t in before.items() if not torch.equal(held[name].float(), t)]
        ensure(changed == [], f"{changed} were rounded by a move to {dtype}")
    floats = {p.dtype for p in trial.model.parameters() if p.is_floating_point()}
    ensure(floats == {torch.float64}, "not all moved")


def _masters_in_fp32(trial: Trial) -> None:
    named = {id(p): name for name, p in trial.model.named_parameters()}
    for parameter in parameters(trial.model):
        name = named[id(parameter)]
        ensure(parameter.dtype == torch.float32, f"{name} is {parameter.dtype}")
        if parameter.grad is not None:
            ensure(parameter.grad.dtype == torch.float32, f"the gradient of {name} is not fp32")
            ensure(parameter.grad.isfinite().all(), f"the gradient of {name} is not finite")
    reached = [p for p in parameters(trial.model) if p.grad is not None]
    ensure(reached, "no gradient reaches any parameter")


def _close(rounded: Tensor, exact: Tensor, what: str, trial: Trial) -> None:
    """As near as bf16 is: 8 bits, through some ten layers; where the law is sharp, as it can be."""
    ensure(rounded.isfinite().all(), f"{what}: not finite")
    off = _off(rounded, exact)
    ensure(off < 0.15 or off < 2 * _sharpness(trial), f"{what}: off by {off:.0%}")


def _sharpness(trial: Trial) -> float:
    """How far noise of bf16's size on every weight moves the outputs in fp32: a softmax between
    scores of a hundred makes much of it, and would in any precision.
    """
    exact, found = trial.outputs(), []
    kept = {name: p.detach().clone() for name, p in trial.model.named_parameters()}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in trial.model.named_parameters():
                p.copy_(kept[name] * (1 + 2**-8 * torch.randn(p.shape, generator=generator)))
        found.append(_off(trial.outputs(), exact))
    with torch.no_grad():
        for name, p in trial.model.named_parameters():
            p.copy_(kept[name])
    return max(found)


def _off(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def _up(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
