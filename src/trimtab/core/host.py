"""The module that stands at a site: the base together with the deltas that act on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.delta import Delta
from trimtab.core.errors import StateError, TrimtabError
from trimtab.core.operator import Base, Operator, Under
from trimtab.core.site import Site


class Switch:
    """What all hosts of a model look at: the active adapters, innermost first, and whether they are
    merged. One object per model, so that switching costs no walk over it."""

    def __init__(self) -> None:
        self.active: tuple[str, ...] = ()
        self.version = 0
        self.latest = 0
        self.held = False
        self.merged = False

    def set(self, active: tuple[str, ...], *, merged: bool = False) -> None:
        self.active, self.merged = active, merged
        self.version = self.latest = self.latest + 1

    @contextlib.contextmanager
    def instead(self, active: tuple[str, ...]) -> Iterator[None]:
        """Others act for a while, under a version of their own; then all is as it was, version
        included, so that a backward pass of what ran before still finds its own.
        """
        before = self.active, self.version, self.held
        self.set(active)
        self.held = True
        try:
            yield
        finally:
            self.active, self.version, self.held = before

    def refuse_held(self) -> None:
        """What would be changed now is put back when `instead` ends."""
        if self.held:
            raise StateError(
                "within `trimtab.using` the adapters stay as they are, since its end puts back "
                "what it found: do this after the block"
            )


class Host(nn.Module):
    """A base module and its deltas, in the base's place.

    It holds the very dictionaries of its base's parameters and buffers, so that their names, weight
    tying and `.to()` remain the base's own, and answers for any other attribute with the base's.
    """

    def __init__(self, site: Site, switch: Switch) -> None:
        super().__init__()
        base = site.module
        self.__dict__["base"] = base  # beside the module tree: a child would rename the parameters
        self.geometry = site.geometry
        self.switch = switch
        self.called = False
        self.ran = False  # in this call of the model; only `watch.OutputSkipped` looks at it
        self.original: dict[str, Tensor] = {}
        self._parameters = base._parameters
        self._buffers = base._buffers
        self._non_persistent_buffers_set = base._non_persistent_buffers_set
        self._modules.update(base._modules)
        self.deltas = nn.ModuleDict()
        self.training = base.training
        self._register_state_dict_hook(_leave_out_merged)

    def add(self, adapter: str, delta: Delta) -> None:
        """Put a delta above those that the adapter already has here."""
        if adapter not in self.deltas:
            self.deltas[adapter] = nn.ModuleDict()
        stack = self.deltas[adapter]
        assert isinstance(stack, nn.ModuleDict)
        stack[delta.method.name] = delta.train(self.training)

    def stack(self, adapter: str) -> Mapping[str, Delta]:
        """The adapter's deltas here by method, innermost first."""
        if adapter not in self.deltas:
            return {}
        return dict(self.deltas[adapter].items())  # type: ignore[operator]

    def active(self) -> list[Delta]:
        """The deltas that act now, innermost first."""
        return [delta for name in self.switch.active for delta in self.stack(name).values()]

    def operator(self) -> Operator:
        """The base under the active deltas."""
        return self._stacked(self.active())

    def _stacked(self, deltas: Sequence[Delta]) -> Operator:
        operator: Operator = Base(self.base, self.geometry)
        for delta in deltas:
            operator = Under(delta, operator)
        return operator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called = self.ran = True
        active = () if self.switch.merged else self.active()
        return self._stacked(active)(*args, **kwargs) if active else self.base(*args, **kwargs)

    @torch.no_grad()
    def merge(self, shared: Mapping[int, Sequence[str]]) -> None:
        """Write the active laws into the base's tensors, and remember what was there.

        `shared` names the modules that hold a tensor in common: one that would change is refused.
        """
        own = dict(self.base.named_parameters(recurse=False))
        tensors = {name: _at_least_fp32(tensor) for name, tensor in own.items()}
        for delta in self.active():
            values = delta.values(next(iter(tensors.values())).dtype)
            tensors = delta.method.rewrite(values, tensors, self.geometry)
        merged = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
        changed = {name: new for name, new in merged.items() if not torch.equal(new, own[name])}
        for name, tensor in changed.items():
            if not tensor.isfinite().all():
                raise TrimtabError(f"{delta.method.name}: the merged {name} is not finite")
            if id(own[name]) in shared:
                raise StateError(
                    f"{' and '.join(map(repr, shared[id(own[name])]))} are tied: merging into one "
                    f"{name} would change all of them; untie them first, or leave the site out"
                )
        self.original = {name: tensor.detach().clone() for name, tensor in own.items()}
        self._write(changed)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the remembered tensors back, bit for bit."""
        self._write(self.original)
        self.original = {}

    def forget(self) -> None:
        """Keep the merged weights for good."""
        self.original = {}

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.base.get_parameter(name).copy_(tensor)

    def train(self, mode: bool = True) -> Host:
        self.base.train(mode)
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"base: {self.base!r}"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("base")
            if base is None or name.startswith("__"):
                raise
            return getattr(base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Attributes that are the base's (`num_embeddings` after a resize) are set on the base."""
        base = self.__dict__.get("base")
        if base is not None and name in base.__dict__ and name not in self.__dict__:
            setattr(base, name, value)
        else:
            super().__setattr__(name, value)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.base._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        strange: list[str] = []
        self.base._load_from_state_dict(state, prefix, metadata, strict, missing, strange, errors)
        own = f"{prefix}deltas."  # the base knows nothing of these; they answer for themselves
        unexpected += [key for key in strange if not key.startswith(own)]


def _at_least_fp32(tensor: Tensor) -> Tensor:
    """What is merged is computed in full precision and rounded once, when it is written."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _leave_out_merged(host: Host, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Merged deltas are in the weights already: stored beside them they would act twice."""
    if host.switch.merged:
        for key in [key for key in state if key.startswith(f"{prefix}deltas.")]:
            del state[key]
