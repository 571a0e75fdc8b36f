"""An adapter, a named set of deltas; and the record of all adapters that a model carries."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trimtab.core.delta import Delta, Tensors
from trimtab.core.errors import InputError, StateError, nearest
from trimtab.core.host import Companion, Host, Switch
from trimtab.core.method import Beside, Combine, Method, Selection

RECORD = "_trimtab"


@dataclass(repr=False)
class Adapter:
    """What one trains, saves, loads and serves: which method acts at which site.

    `hosts` are the modules that hold its deltas, by site; `shared` what its sites have in common,
    by method. A `Selection` has none: `selected` are then the base's own trained parameters,
    `originals` what they were; the two are exchanged when it is not active (`in_place` tells).
    """

    name: str
    entries: tuple[tuple[str, Method], ...]
    hosts: dict[str, Host | Companion] = field(default_factory=dict)
    members: list[Delta] = field(default_factory=list)
    shared: dict[str, Tensors] = field(default_factory=dict)
    selected: dict[str, nn.Parameter] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    trainable: bool = True
    in_place: bool = True

    def __repr__(self) -> str:
        kinds = ", ".join(sorted({method.name for _, method in self.entries}))
        return f"Adapter({self.name!r}: {kinds} at {len(self.hosts) or 'no'} sites)"

    def renew(self) -> None:
        """Take over what its deltas have become."""
        self.entries = tuple((site, delta.method) for site, delta in self.deltas())
        self.__dict__.pop("methods", None)

    @functools.cached_property
    def methods(self) -> frozenset[Method]:
        """Its methods, each once."""
        return frozenset(method for _, method in self.entries)

    @functools.cached_property
    def beside(self) -> bool:
        """Whether it has a network beside a stack, which reads the stack's blocks."""
        return any(isinstance(method, Beside) for method in self.methods)

    @property
    def selection(self) -> Selection | None:
        method = self.entries[0][1]
        return method if isinstance(method, Selection) else None

    @property
    def over(self) -> tuple[str, ...]:
        """The adapters that this one combines."""
        named = [m.over for _, m in self.entries if isinstance(m, Combine)]
        return tuple(dict.fromkeys(name for names in named for name in names))

    def deltas(self) -> Iterator[tuple[str, Delta]]:
        """(site, delta) for all sites, in the model's order."""
        return ((delta.site.name, delta) for delta in self.members)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, by name: `site.method.tensor`, `shared.method.tensor`, or the parameter's
        own name."""
        named = {
            f"{site}.{delta.method.name}.{name}": tensor
            for site, delta in self.deltas()
            for name, tensor in delta.tensors().items()
        }
        for key, held in self.shared.items():
            named |= {f"shared.{key}.{name}": tensor for name, tensor in held.tensors().items()}
        return {**named, **(self.selected if self.in_place else self.originals)}

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train."""
        own = [p for one in self._held() for p in one._parameters.values() if p is not None]
        return [*own, *self.selected.values()]

    def rates(self) -> dict[nn.Parameter, float]:
        """By what the learning rate is multiplied, where that is not one."""
        return {
            one._parameters[name]: rate  # type: ignore[misc]
            for one in self._held()
            for name, rate in one.rates.items()
        }

    def _held(self) -> list[Tensors]:
        return [*self.members, *self.shared.values()]

    def exchange(self) -> None:
        """Swap the selected parameters' values with the remembered ones."""
        for name, parameter in self.selected.items():
            there = self.originals[name].to(parameter.data)  # the model may have been moved since
            parameter.data, self.originals[name] = there, parameter.data
        self.in_place = not self.in_place


@dataclass
class Record:
    """Everything Trimtab knows of one model. It lives on the model, so that copies carry their
    own.
    """

    switch: Switch = field(default_factory=Switch)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    trained_before: frozenset[str] = frozenset()
    nested_before: tuple[str, ...] = ()  # torch's encoders that made nested tensors of padded input
    codes: dict[str, Any] = field(
        default_factory=dict
    )  # what a merge has put plain maps in place of
    listed: tuple[Any, Any] | None = None  # the model's sites, and what it was made of then

    def __getstate__(self) -> dict[str, Any]:
        """A copy is of other modules."""
        return {**self.__dict__, "listed": None}

    def originals(self) -> dict[str, Tensor]:
        """The base's own values, by parameter, where merging or training has changed them."""
        found: dict[str, Tensor] = {}
        for adapter in self.adapters.values():
            for site, delta in adapter.deltas() if self.switch.merged else ():
                home, original = delta.site.homes[0], getattr(adapter.hosts[site], "original", {})
                found |= {f"{home}.{name}": tensor for name, tensor in original.items()}
            if adapter.in_place:
                found |= adapter.originals
        return found

    def acting(self) -> Iterator[Adapter]:
        """The active adapters, with those that they combine, each once."""
        active = [self.adapters[name] for name in self.switch.active]
        named = [name for adapter in active for name in (*adapter.over, adapter.name)]
        return (self.adapters[name] for name in dict.fromkeys(named) if name in self.adapters)

    def adapter(self, name: str | None) -> Adapter:
        """The adapter of this name; without a name, the only one."""
        if name is None:
            if len(self.adapters) == 1:
                return next(iter(self.adapters.values()))
            raise InputError(
                f"name one of the {len(self.adapters)} adapters, name=…: {sorted(self.adapters)}"
            )
        if name not in self.adapters:
            raise InputError(f"no adapter is called {name!r}; {nearest(name, self.adapters)}")
        return self.adapters[name]


def unwrap(model: nn.Module) -> nn.Module:
    """The model beneath the wrappers of data parallelism and compilation."""
    inner: nn.Module | None = model
    while inner is not None and RECORD not in inner.__dict__:
        inner = inner._modules.get("_orig_mod", inner._modules.get("module"))
    return model if inner is None else inner


def carries(model: nn.Module) -> bool:
    """Whether anything is attached to the model."""
    return RECORD in unwrap(model).__dict__


def record(model: nn.Module) -> Record:
    """The model's record; an error where nothing was attached."""
    found = unwrap(model).__dict__.get(RECORD)
    if found is None:
        raise StateError("the model carries no adapter: attach or load one first")
    return found


def intact(model: nn.Module, adapters: Iterable[Adapter]) -> None:
    """Raise where a host of these adapters is no longer in the model."""
    base = unwrap(model)
    parent = functools.cache(functools.partial(_within, base))  # many sites lie in one
    for adapter in adapters:
        held: dict[str, nn.Module | nn.Parameter] = {**adapter.selected}
        held |= {site: host for site, host in adapter.hosts.items() if type(host) is Host}
        for path, known in held.items():
            path = path.partition("[")[0]
            above, _, leaf = path.rpartition(".")
            if getattr(parent(above), leaf, None) is not known:
                raise StateError(
                    f"{path!r}, of adapter {adapter.name!r}, was replaced since the adapter was "
                    "attached: resize a vocabulary first, then attach; FSDP2 replaces all "
                    "parameters, so that methods which train the base's own do not work under it"
                )


def _within(model: nn.Module, path: str) -> nn.Module | None:
    """The module of this name, if there is one."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
