"""What is checked while an adapted model runs. Hooks are objects of this module, so that models
pickle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import StateError
from trimtab.core.host import Host, Switch


class PinVersion:
    """At the root: a backward pass that would recompute under other adapters raises instead."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            check = _Check(self.switch)
            for tensor in _tensors(output):
                if tensor.grad_fn is not None:
                    tensor.grad_fn.register_prehook(check)


class _Check:
    def __init__(self, switch: Switch) -> None:
        self.switch, self.version = switch, switch.version

    def __call__(self, gradients: Any) -> None:
        if self.switch.version != self.version:
            raise StateError(
                "the active adapters changed between a forward pass and its backward pass, which "
                f"would mix their gradients (active now: {self.switch.active}): call backward "
                "before activate"
            )


def _tensors(output: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif depth and isinstance(output, dict | list | tuple):
        for item in output.values() if isinstance(output, dict) else output:
            yield from _tensors(item, depth - 1)


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
            if host.active():
                raise StateError(
                    f"{type(module).__name__} ran without calling {site!r}: it reads the weight "
                    "itself, so that an adapter there has no effect; choose a target that leaves "
                    "this site out"
                )


class OutputSkipped:
    """At the root, in every call: trainers exchange the model's forward for one that multiplies by
    the output layer's weight itself, long after the layer has been seen to run.
    """

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        host = module.get_output_embeddings()  # type: ignore[operator]
        if isinstance(host, Host):
            if host.active() and not host.ran:
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
        if (
            torch.is_grad_enabled()
            and module.training
            and isinstance(output, Tensor)
            and output.is_floating_point()
            and not output.requires_grad
            and any(_checkpoints(part) for part in self.model.modules())
        ):
            output.requires_grad_(True)


def _checkpoints(module: nn.Module) -> bool:
    return bool(module.__dict__.get("gradient_checkpointing", False))


def contiguous_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """At frozen linear maps that are no site. With a frozen weight, a strided input is not folded
    into one matrix product: the weight is expanded once per example, a thousand times slower.
    """
    x = args[0] if args else None
    if isinstance(x, Tensor) and not x.is_contiguous():
        return (x.contiguous(), *args[1:])
    return None


HOOKS = (PinVersion, NoticeSkipped, OutputSkipped, InputGradients, contiguous_input)
"""All that we hang on a model, to be dropped with its last adapter."""


def overlook(parent: nn.Module, host: Host) -> None:
    """A host that is gone is no longer waited for."""
    for hook in list(parent._forward_hooks.values()):
        if isinstance(hook, NoticeSkipped):
            hook.hosts = {
                site: waiting for site, waiting in hook.hosts.items() if waiting is not host
            }
            if not hook.hosts:
                drop(parent, hook)


def drop(module: nn.Module, hook: Any) -> None:
    """Remove this hook, or our hooks of this class, from a module."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key, value in list(hooks.items()):
            if value is hook or (isinstance(hook, type) and isinstance(value, hook)):
                del hooks[key]
