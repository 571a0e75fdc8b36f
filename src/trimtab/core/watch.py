"""What is checked while an adapted model runs. Hooks are objects of this module, so that models
pickle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.call import Call
from trimtab.core.errors import StateError
from trimtab.core.host import Host, Switch
from trimtab.core.training import penalties, require_ready
from trimtab.core.walk import walk


class PinVersion:
    """At the root, when a call ends: a backward pass that would recompute under other adapters
    raises instead; one that recomputes finds the facts of its own call again. Called also where the
    forward pass fails (the output is None then), so that its facts reach no later call.
    """

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        switch = self.switch
        switch.inside = False
        if module.training and torch.is_grad_enabled():
            if not torch.compiler.is_compiling():
                require_ready(module)
            self._penalise(module, output)
        if not torch.is_grad_enabled():
            switch.call = Call()  # nobody will ask for its tensors again
        else:
            pin(switch, output, module.training)

    def _penalise(self, module: nn.Module, output: Any) -> None:
        """The laws' penalties join the loss that the model computes; another must ask for them."""
        found = penalties(module)
        if found is None:
            return
        loss = output.get("loss") if isinstance(output, dict) else None
        self.switch.owed = loss is None
        if loss is not None:
            output["loss"] = loss + found.to(loss)


class PinStack:
    """The same at a stack that is called by itself."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.switch.inside and torch.is_grad_enabled():
            pin(self.switch, output, module.training)


def pin(switch: Switch, output: Any, training: bool) -> None:
    """The backward pass from this output belongs to the call that is now."""
    if not torch.compiler.is_compiling():
        check = _Check(switch, training)
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(check)


class _Check:
    def __init__(self, switch: Switch, training: bool) -> None:
        self.switch, self.version, self.call = switch, switch.version, switch.call
        self.trains = switch.active if training else ()

    def __call__(self, gradients: Any) -> None:
        self.switch.call = self.call
        if self.switch.version != self.version:
            raise StateError(
                "the active adapters changed between a forward pass and its backward pass, which "
                f"would mix their gradients (active now: {self.switch.active}): call backward "
                "before activate"
            )
        if self.switch.owed:
            raise StateError(
                "the active adapter has a penalty, which the loss does not hold: add "
                "trimtab.penalty(model) to it (a loss that the model computes itself has it)"
            )
        self.switch.trained.update(self.trains)


def tensors_in(held: Any, depth: int = 3) -> Iterator[Tensor]:
    """The tensors in what a module is given or gives: in containers and in data classes."""
    if isinstance(held, Tensor):
        yield held
    elif depth:
        for item in _items(held):
            yield from tensors_in(item, depth - 1)


def _items(held: Any) -> list[Any]:
    if isinstance(held, dict):
        return list(held.values())
    if isinstance(held, list | tuple):
        return list(held)
    if dataclasses.is_dataclass(held):
        return [getattr(held, f.name, None) for f in dataclasses.fields(held)]
    return []


class NoticeSkipped:
    """At the parents of hosts: one that runs without calling its host would leave it untrained."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self.hosts = hosts

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self.hosts = {site: host for site, host in self.hosts.items() if not host.called}
        if not self.hosts:
            drop(module, self)
        for site, host in self.hosts.items():
            if host.acts():
                raise StateError(
                    f"{type(module).__name__} ran without calling {site!r}: it reads the weight "
                    "itself, so that an adapter there has no effect; choose a target that leaves "
                    "this site out"
                )


def notice_skipped(module: nn.Module, hosts: Mapping[str, Host]) -> None:
    """Wait for these hosts, but for those that have been called before: one hook a module."""
    waiting = {site: host for site, host in hosts.items() if not host.called}
    hooks = (hook for hook in module._forward_hooks.values() if isinstance(hook, NoticeSkipped))
    if hook := next(hooks, None):
        hook.hosts = {**hook.hosts, **waiting}
    elif waiting:
        module.register_forward_hook(NoticeSkipped(waiting))


class OutputSkipped:
    """At the root, in every call: trainers exchange the model's forward for one that multiplies by
    the output layer's weight itself, long after the layer has been seen to run.
    """

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        host = module.get_output_embeddings()  # type: ignore[operator]
        if isinstance(host, Host):
            if host.acts() and not host.ran:
                raise StateError(
                    f"{type(module).__name__} ran without calling its output layer, whose weight "
                    "something reads directly (the chunked losses of TRL and Liger do), so that an "
                    "adapter there has no effect and never trains: choose a target or `train` that "
                    "leaves it out"
                )
            host.ran = False


class InputGradients:
    """At the input embedding: checkpointing that re-enters autograd trains a block only where its
    input asks for a gradient, and a frozen embedding's output does not."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if module.training and _could_ask(output) and _checkpoints(self.model):
            output.requires_grad_(True)


class StackGradients:
    """The same before a stack that embeds no tokens: sounds, pictures."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if not module.training or not _checkpoints(self.model):
            return None
        args, kwargs = list(args), dict(kwargs)
        for held, key in [*((args, i) for i in range(len(args))), *((kwargs, k) for k in kwargs)]:
            if _could_ask(held[key]):
                held[key] = held[key].detach().requires_grad_(True)
                break
        return tuple(args), kwargs


def _could_ask(x: Any) -> bool:
    """Whether x could ask for a gradient, and does not."""
    floats = isinstance(x, Tensor) and x.is_floating_point()
    return floats and torch.is_grad_enabled() and not x.requires_grad


def _checkpoints(model: nn.Module) -> bool:
    return any(part.__dict__.get("gradient_checkpointing", False) for _, part in walk(model))


def contiguous_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """At frozen linear maps that are no site. With a frozen weight, a strided input is not folded
    into one matrix product: the weight is expanded once per example, a thousand times slower.
    """
    x = args[0] if args else None
    if isinstance(x, Tensor) and not x.is_contiguous():
        return (x.contiguous(), *args[1:])
    return None


def overlook(model: nn.Module, host: Host) -> None:
    """A host that is gone is no longer waited for."""
    for _, module in walk(model):
        for hook in list(module._forward_hooks.values()):
            if isinstance(hook, NoticeSkipped):
                hook.hosts = {
                    s: waiting for s, waiting in hook.hosts.items() if waiting is not host
                }
                if not hook.hosts:
                    drop(module, hook)


def drop(module: nn.Module, hook: Any) -> None:
    """Remove this hook, or our hooks of this class, from a module."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key, value in list(hooks.items()):
            if value is hook or (isinstance(hook, type) and isinstance(value, hook)):
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
