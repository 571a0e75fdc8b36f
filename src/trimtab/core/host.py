"""The modules that hold deltas: in a base module's place, or as its child."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trimtab.core import quantised
from trimtab.core.block import Block
from trimtab.core.call import Call
from trimtab.core.compose import Composition, order, over
from trimtab.core.delta import Delta, Tensors
from trimtab.core.errors import InputError, StateError, TrimtabError
from trimtab.core.operator import Base, Operator, Patches
from trimtab.core.site import Geometry, Site, attribute, beside


class Switch:
    """What all hosts of a model look at: which adapters act and how they are composed, whether they
    are merged, and the facts of the call. One object per model, so that switching costs no walk."""

    def __init__(self) -> None:
        self.composition: Composition | None = None
        self.active: tuple[str, ...] = ()
        self.version = 0
        self.latest = 0
        self.held = False
        self.merged = False
        self.call = Call()
        self.inside = False  # whether the root's forward is running
        self.given: dict[str, Any] = {}
        self.trained: set[str] = set()  # adapters that a backward pass in training went through
        self.scheduled: set[str] = set()  # adapters for which `after_backward` was called
        self.owed = False  # whether a loss outside the model still has to take up the penalties

    def set(self, composition: Composition | None, *, merged: bool = False) -> None:
        self.composition, self.merged = composition, merged
        self.active = tuple(dict.fromkeys(order(composition)))
        self.version = self.latest = self.latest + 1

    @contextlib.contextmanager
    def instead(self, composition: Composition | None) -> Iterator[None]:
        """Others act for a while, under a version of their own; then all is as it was, version
        included, so that a backward pass of what ran before still finds its own.
        """
        before = dict(self.__dict__)
        self.set(composition)
        self.held = True
        try:
            yield
        finally:
            self.__dict__.update(before, latest=self.latest)

    def refuse_held(self) -> None:
        """What would be changed now is put back when `instead` ends."""
        if self.held:
            raise StateError(
                "within `trimtab.using` the adapters stay as they are, since its end puts back "
                "what it found: do this after the block"
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy is in no call."""
        return {**self.__dict__, "call": Call(), "inside": False, "given": {}}


class Deltas(nn.ModuleDict):
    """Deltas by adapter, then by method."""

    def add(self, adapter: str, key: str, held: Tensors) -> None:
        """Put a delta above those that the adapter already has here."""
        if adapter not in self._modules:  # past `add_module`: any name will do, even "train"
            self._modules[adapter] = nn.ModuleDict().train(self.training)
        stack = self._modules[adapter]
        assert stack is not None
        if key in stack._modules:
            raise StateError(
                f"adapter {adapter!r} has {key!r} here already, and another would take its place"
            )
        stack._modules[key] = held.train(self.training)

    def of(self, adapter: str) -> Mapping[str, Delta]:
        """The adapter's deltas here, innermost first."""
        held = self._modules.get(adapter)
        return {} if held is None else held._modules  # type: ignore[return-value]

    def drop(self, adapter: str) -> None:
        del self._modules[adapter]

    def act(self, switch: Switch) -> bool:
        """Whether any of them changes anything now."""
        return not switch.merged and any(name in self._modules for name in switch.active)

    def acting(self, switch: Switch) -> list[Delta]:
        """Those of the active adapters, innermost first."""
        return [delta for name in switch.active for delta in self.of(name).values()]

    def forward(self, x: Any) -> Any:
        """Hands on what it gets: a `Sequential` calls all its children."""
        return x


class Companion(Deltas):
    """Deltas at a site that is no map (a stack, an attention, the model's root): a child of the
    module there, called `deltas`, which hooks of the module and its attention function ask."""

    def __init__(self, site: Site, switch: Switch) -> None:
        super().__init__()
        self.site, self.switch = site.bare, switch
        self._register_state_dict_hook(_leave_out_merged)

    def acts(self) -> bool:
        return self.act(self.switch)

    def active(self) -> list[Delta]:
        """The deltas that act now, in order."""
        return self.acting(self.switch)

    stack = Deltas.of


class Host(nn.Module):
    """A base module and its deltas, in the base's place.

    It holds the very dictionaries of its base's parameters and buffers, so that their names, weight
    tying and `.to()` remain the base's own, and answers for any other attribute with the base's.
    """

    def __init__(self, site: Site, switch: Switch) -> None:
        super().__init__()
        base = site.module
        self.switch = switch
        self.called = False
        self.ran = False  # in this call of the model; only `watch.OutputSkipped` looks at it
        self.original: dict[str, Tensor] = {}
        self.geometries: dict[str, Geometry] = {}
        self.tapped: dict[str, str] = {}
        self.reads: dict[str, str] = {}
        self.stand_on(base)
        self._modules.update(base._modules)
        self.deltas = Deltas()
        self.training = self.deltas.training = base.training
        self._register_state_dict_hook(_leave_out_merged)
        self.admit(site)
        self.__dict__["_own"] = frozenset(self.__dict__) | {"_own"}

    def stand_on(self, base: nn.Module) -> None:
        """Another base of the same geometry in the place of the one before."""
        self.__dict__["base"] = base  # beside the module tree: a child would rename the parameters
        self._parameters, self._buffers = base._parameters, base._buffers
        self._non_persistent_buffers_set = base._non_persistent_buffers_set

    def admit(self, site: Site) -> None:
        """A further site of this module: of parts of a fused map the whole is remembered."""
        self.geometries["weight"] = site.whole or site.geometry

    @property
    def geometry(self) -> Geometry:
        return self.geometries["weight"]

    def add(self, adapter: str, delta: Delta) -> None:
        self.deltas.add(adapter, delta.key, delta)

    def stack(self, adapter: str) -> Mapping[str, Delta]:
        """The adapter's deltas here by method, innermost first."""
        return self.deltas.of(adapter)

    def active(self) -> list[Delta]:
        """The deltas that act now, innermost first."""
        return self.deltas.acting(self.switch)

    def acts(self) -> bool:
        return self.deltas.act(self.switch)

    def operator(self, base: Operator | None = None) -> Operator:
        """The base under the active composition."""
        base = Base(self.base, self.geometry) if base is None else base
        return over(self.switch.composition, base, self.deltas.of, self.switch.call)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called = self.ran = True
        if self.tapped:
            self._tap(args, kwargs)
        if not self.acts():
            return self.base(*args, **kwargs)
        if not args:
            args = (kwargs.pop(_first(type(self.base).forward)),)
        x, *rest = args
        match self.geometry.kind:
            case "block":
                block = Block(self.base, self.geometry, tuple(rest), kwargs)
                y = block.output(self.operator(block)(x))
            case kind:
                base = Base(self.base, self.geometry, extra=(rest, kwargs))
                if kind == "conv":
                    patches = Patches(self.base, x)
                    y = patches.first(self.operator(base)(patches))  # type: ignore[arg-type]
                else:
                    y = self.operator(base)(x)
        for key in self.reads.values():
            self.switch.call.taps.pop(key, None)
        return y

    def _tap(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else kwargs[_first(type(self.base).forward)]
        self.switch.call.taps.update(dict.fromkeys(self.tapped.values(), x))

    def _rewritten(self) -> Iterator[tuple[str, Tensor]]:
        """(path beneath the base, tensor as the active adapters make it)."""
        yield from self.operator().tensors().items()

    def _evaluated(self) -> list[tuple[str, Tensor]]:
        """The same as laws have it at evaluation: without dropout or drawn masks."""
        training = self.deltas.training
        try:
            self.deltas.eval()
            return list(self._rewritten())
        finally:
            self.deltas.train(training)

    @torch.no_grad()
    def merge(self, shared: Mapping[int, Sequence[str]]) -> None:
        """Write the active laws into the base's tensors, and remember what was there.

        `shared` names the modules that hold a tensor in common: one that would change is refused.
        """
        if not self.active():
            return
        changed: dict[str, Tensor] = {}
        for name, tensor in self._evaluated():
            own = self._writable(name, tensor)
            if own is None:
                continue
            tensor = tensor.to(own.dtype)
            if not tensor.isfinite().all():
                raise TrimtabError(
                    f"{self.active()[-1].method.name}: the merged {name} is not finite"
                )
            if id(own) in shared:
                raise StateError(
                    f"{' and '.join(map(repr, shared[id(own)]))} are tied: merging into one "
                    f"{name} would change all of them; untie them first, or leave the site out"
                )
            changed[name] = tensor
        self.original = {n: self.base.get_parameter(n).detach().clone() for n in changed}
        self._write(changed)

    def _writable(self, name: str, new: Tensor) -> nn.Parameter | None:
        """The base's parameter of this name, if the new values would change it. An untrained
        adapter changes nothing: into codes, too, it is merged without loss, by leaving them."""
        coded = name == "weight" and quantised.coded(self.base)
        own = quantised.weight(self.base) if coded else attribute(self.base, name)
        if torch.equal(new, own.to(new.dtype)) or (
            not coded and torch.equal(new.to(own.dtype), own)
        ):
            return None
        where = f"the {name} of {type(self.base).__name__} at {self.active()[-1].site.name!r}"
        if coded:
            raise InputError(
                f"{where} holds codes, to which merged values would be rounded: leave the adapter "
                "unmerged, or give up the codes, `merge(model, dequantise=True)`"
            )
        if not isinstance(own, nn.Parameter):
            raise StateError(
                f"{where} is computed from other tensors at every call (weight norm, a "
                "parametrization), so nothing can be merged into it: make it a plain parameter "
                "before attaching, or leave the adapter unmerged"
            )
        return own

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
        """What is not the host's own is the base's: `num_embeddings` after a resize, the function
        that checkpoints a block. The class, which FSDP2 exchanges, is its own."""
        own = self.__dict__.get("_own")
        if own is None or name in own or name in self._modules or name == "__class__":
            super().__setattr__(name, value)
        else:
            setattr(self.base, name, value)

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


class ParameterHost(Host):
    """In the place of a module that reads tensors itself, its own or its children's: it is called
    with those tensors as the laws make them (`torch.func.functional_call`)."""

    def admit(self, site: Site) -> None:
        assert site.parameter is not None
        self.geometries[site.parameter] = site.whole or site.geometry

    @property
    def geometry(self) -> Geometry:
        return next(iter(self.geometries.values()))

    def _at(self, parameter: str, adapter: str) -> Mapping[str, Delta]:
        return {
            key: delta
            for key, delta in self.stack(adapter).items()
            if delta.site.parameter == parameter
        }

    def _rewritten(self) -> Iterator[tuple[str, Tensor]]:
        for parameter, geometry in self.geometries.items():
            if not any(self._at(parameter, name) for name in self.switch.active):
                continue
            base = Base(self.base, geometry, parameter)
            deltas = functools.partial(self._at, parameter)
            tensors = over(self.switch.composition, base, deltas, self.switch.call).tensors()
            yield parameter, tensors["weight"]
            if "bias" in tensors:
                yield beside(parameter), tensors["bias"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        if not self.acts():
            return self.base(*args, **kwargs)
        tensors = {n: t.to(self.base.get_parameter(n).dtype) for n, t in self._rewritten()}
        return functional_call(self.base, tensors, args, kwargs)


@functools.cache
def _first(forward: Callable[..., Any]) -> str:
    """The name of a module's input."""
    return list(inspect.signature(forward).parameters)[1]


def _leave_out_merged(
    holder: Host | Companion, state: dict[str, Tensor], prefix: str, _: Any
) -> None:
    """Merged deltas are in the weights already: stored beside them they would act twice."""
    if holder.switch.merged:
        own = f"{prefix}deltas." if isinstance(holder, Host) else prefix
        for key in [key for key in state if key.startswith(own)]:
            del state[key]
