"""The verbs that change a model in memory: attach, detach, activate, merge, unmerge."""

from __future__ import annotations

import contextlib
import gc
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeGuard

from torch import nn

from trimtab.choose import Methods, Plan, choose
from trimtab.codes import decode, encode
from trimtab.core import sharded
from trimtab.core.adapter import RECORD, Adapter, Record, carries, intact, record, unwrap
from trimtab.core.compose import Composition, Route, Stack, order
from trimtab.core.errors import InputError, SiteNotFound, StateError
from trimtab.core.heads import drawn
from trimtab.core.host import Companion, Host
from trimtab.core.method import Combine, Method, Prefix, Prompt, Selection
from trimtab.core.site import Site
from trimtab.core.walk import base_parameters, plain, shapes, walk
from trimtab.match import Target
from trimtab.place import (
    build,
    by_method,
    guard,
    hosts_of,
    place,
    reconnect,
    release,
    remove,
    tied,
    withdraw,
)
from trimtab.together import composed, only_combined

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Hundreds of new modules are no garbage: to look among them, and among those of a thousand
    adapters beside them, again and again is a quarter of the time that it takes to attach one."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def attach(
    model: nn.Module,
    method: Methods | Plan,
    to: Target | None = None,
    *,
    name: str = "default",
    train: str | Sequence[str] = (),
) -> Adapter:
    """Freeze the base, put a new adapter on it, make it the active one, and return it.

    Args:
        model: any module; it is changed in place.
        method: what to do at every site; several methods, each at its own; or a plan: target ->
            method or methods. A configuration of HF PEFT is taken too.
        to: the target, see `match`; left out, the method's own (LoRA: all linear maps).
        name: the adapter's name on this model.
        train: modules to train whole beside it, by name, such as a new head.

    Raises:
        InputError: a name that is taken or no name; two targets that need one name each.
        SiteNotFound: a target, or a module of `train`, that names nothing the method can act on.
    """
    model, train = unwrap(model), [train] if isinstance(train, str) else train
    refuse_wrapped(model)
    record_ = admit(model, name)
    with _upon_base(model, record_), _uncollected():
        if isinstance(method, Selection):
            if to is not None or train:
                raise InputError(
                    f"{method.name} chooses its parameters: leave `to` and `train` out"
                )
            adapter = install(model, record_, select(model, method, name))
        else:
            pairs = choose(model, method, to, train)
            require_parts(model, pairs)
            _refuse_unused(pairs)
            adapter = install(model, record_, place(model, record_, name, build(model, pairs)))
    if frozen := _left_at_random(model, record_):
        warnings.warn(
            f"the checkpoint held no values for {', '.join(map(repr, frozen))}: transformers drew "
            f"them at random, and they stay so, for no adapter trains them. Attach with "
            f"train={frozen!r} to train them beside the method",
            stacklevel=2,
        )
    return adapter


def _left_at_random(model: nn.Module, record_: Record) -> list[str]:
    """A new head at which no adapter acts."""
    found = drawn(model)
    adapters = record_.adapters.values() if found else ()
    touched = [name for one in adapters for name in (*one.hosts, *one.selected)]
    return [
        head for head in found if not any(f"{name}.".startswith(f"{head}.") for name in touched)
    ]


def refuse_wrapped(model: nn.Module) -> None:
    """What wraps a model has read its parameters already, or names them otherwise."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrappers) or "_orig_mod" in model._modules:
        raise InputError(
            f"the model is wrapped in {type(model).__name__}: attach to the model itself, then "
            "wrap it"
        )


@contextlib.contextmanager
def _upon_base(model: nn.Module, record_: Record) -> Iterator[None]:
    """A new adapter starts at the base's own values; after an error what was active is so again."""
    before = record_.switch.composition
    if before is not None:
        activate(model, None)
    try:
        yield
    except BaseException:
        if before is not None:
            activate(model, before)
        raise


def admit(model: nn.Module, name: str) -> Record:
    """The record under which a new adapter of this name can be put on the model now."""
    record_ = _record(model)
    _refuse_nested(model, record_)
    sharded.refuse(model)
    record_.switch.refuse_held()
    if not _NAME.fullmatch(name):
        raise InputError(f"an adapter's name has letters, digits, '_' and '-' only, not {name!r}")
    if name in record_.adapters:
        raise InputError(
            f"the model already carries an adapter {name!r}: detach it, or attach under another "
            "name, name=…"
        )
    if record_.switch.merged:
        raise StateError("the model is merged: unmerge it before attaching another adapter")
    return record_


def _refuse_nested(model: nn.Module, record_: Record) -> None:
    """A module has one record: its own, or that of the model which it is a part of."""
    for name, module in walk(model):
        switches = {held.switch for held in (module, module._modules.get("deltas")) if _ours(held)}
        own = plain(module) is not model and RECORD in plain(module).__dict__
        if own or switches - {record_.switch}:
            raise StateError(
                f"{name or type(model).__name__!r} carries an adapter of its own, or one of the "
                "model that it is a part of: attach to one of the two only"
            )


def _ours(module: nn.Module | None) -> TypeGuard[Host | Companion]:
    return isinstance(module, Host | Companion)


def _record(model: nn.Module) -> Record:
    if carries(model):
        return record(model)
    trained = frozenset(name for name, p in base_parameters(model) if p.requires_grad)
    return Record(trained_before=trained)


def install(model: nn.Module, record_: Record, adapter: Adapter) -> Adapter:
    """From here on the model carries the adapter; with the first one it is frozen and watched."""
    record_.adapters[adapter.name] = adapter
    try:
        if RECORD not in model.__dict__:
            guard(model, record_)
            if adapter.hosts:
                reconnect(model, record_)
        activate(model, adapter.name)
    except BaseException:
        _set_trained(record_.adapters.pop(adapter.name), active=False)
        withdraw(model, record_, adapter)
        raise
    return adapter


def require_parts(model: nn.Module, pairs: Sequence[tuple[Site, Method]]) -> None:
    """A method over other adapters finds them on the model."""
    record_ = _record(model)
    for method in {method for _, method in pairs if isinstance(method, Combine)}:
        if len(method.over) < 1:
            raise InputError(f"{method.name} combines adapters: name them, over=('a', 'b')")
        for one in method.over:
            part = record_.adapter(one)
            if part.selection or part.over:
                raise InputError(f"{method.name} combines adapters of deltas, and {one!r} is none")
            if any(isinstance(m, Prompt | Prefix) for _, m in part.entries):
                raise InputError(
                    f"{method.name} combines outputs, and {one!r} puts something before the input: "
                    "use Stack or Route for prompts and prefixes"
                )


def _refuse_unused(pairs: Sequence[tuple[Site, Method]]) -> None:
    """What has no effect at any site is refused where it is asked for; files may hold it."""
    for method, where in by_method(pairs).items():
        if (why := method.unused(where)) is not None:
            raise InputError(f"{method.name}: {why}")


def select(model: nn.Module, method: Selection, name: str) -> Adapter:
    """An adapter of the base's own parameters, with what they are now kept for `detach`."""
    own = dict(base_parameters(model))
    chosen = {key: own[key] for key in method.chosen(model) if key in own}
    if not chosen:
        raise SiteNotFound(
            f"{method.name} finds no parameter of its own to train in {type(model).__name__} "
            "(a head that is tied to the embedding has none)"
        )
    packed = sorted(chosen.keys() & shapes(model).keys())
    if packed:
        raise InputError(
            f"{method.name} trains {packed[0]!r} itself, whose codes do not train: dequantise the "
            "model first (`trimtab.dequantise(model)`), or take a method that leaves the base as "
            "it is"
        )
    base = record(model).originals() if carries(model) else {}
    originals = {key: base.get(key, p).detach().clone() for key, p in chosen.items()}
    return Adapter(name, (("", method),), selected=chosen, originals=originals)


def activate(model: nn.Module, composition: Composition | None) -> None:
    """Let these adapters act: a name, a composition of names (`Stack`, `Mix`, `Route`, `Fuse`), or
    None for the base alone.

    The parameters of what is active train; those of what is not, or is only combined, do not.
    """
    record_ = record(model)
    record_.switch.refuse_held()
    names = composed(model, composition)
    parts = only_combined(composition, record_)
    for name in (name for name in record_.switch.active if name not in names):
        _set_trained(record_.adapters[name], active=False)
    for name in names:
        _set_trained(record_.adapters[name], active=True, trains=name not in parts)
    record_.switch.set(composition)


def _set_trained(adapter: Adapter, *, active: bool, trains: bool = True) -> None:
    for parameter in adapter.parameters():
        parameter.requires_grad_(active and trains and adapter.trainable)
    if adapter.selection is not None and active != adapter.in_place:
        adapter.exchange()


def detach(model: nn.Module, name: str | None = None, *, keep: bool = False) -> nn.Module:
    """Remove an adapter (the only one, if no name is given); the rest stay as they are, bit for
    bit.

    Of a `Stack` the others go on acting. A `Mix`, `Route` or `Fuse` ends with any of its parts:
    those that are left stay on the model, and neither act nor train until they are activated.

    With the last adapter the model is the base again, gradients asked for as before. `keep=True`,
    on a merged model, removes every adapter and leaves the merged weights: the model for export.
    """
    record_ = record(model)
    record_.switch.refuse_held()
    model = unwrap(model)
    if keep:
        if not record_.switch.merged:
            raise StateError("keep=True keeps merged weights: merge the model first")
        for adapter in record_.adapters.values():
            for host in hosts_of(adapter.hosts):
                host.forget()
    elif record_.switch.merged:
        raise StateError("the model is merged: unmerge it first, or detach with keep=True")
    for gone in list(record_.adapters) if keep else [record_.adapter(name).name]:
        _remove(model, record_, gone, keep)
    return model


def _remove(model: nn.Module, record_: Record, name: str, keep: bool) -> None:
    intact(model, [record_.adapters[name]])
    users = [other.name for other in record_.adapters.values() if name in other.over]
    if users and not keep:
        raise StateError(f"adapter {users[0]!r} combines {name!r}: detach it first")
    adapter = record_.adapters.pop(name)
    record_.switch.trained.discard(name)
    record_.switch.scheduled.discard(name)
    if not keep:
        _set_trained(adapter, active=False)
    before = record_.switch.active
    if name in before or keep:
        record_.switch.set(_without(record_.switch.composition, name))
    for fallen in set(before) - {*record_.switch.active, name} if not keep else ():
        _set_trained(record_.adapters[fallen], active=False)
    if adapter.hosts:
        remove(model, record_, adapter)
    if not record_.adapters:
        release(model, record_)


def _without(node: Composition | None, name: str) -> Composition | None:
    """What is left of a composition: a stack goes on, the others stood or fell as one."""
    if isinstance(node, Stack):
        rest = [left for part in node.parts if (left := _without(part, name)) is not None]
        return Stack(*rest) if len(rest) > 1 else (rest[0] if rest else None)
    return None if name in order(node) else node


def merge(model: nn.Module, *, dequantise: bool = False) -> nn.Module:
    """Write the active adapters into the base's weights; the model then runs at the base's own
    speed.

    Until `unmerge`, saving the model writes an ordinary checkpoint with the merged weights. Code
    that reads a weight past its module (`h @ self.embed.weight.T`) sees the base's before merging,
    and the merged one after it: leave such a module out, or the outputs differ.

    Nothing is rounded to the codes of a quantised base: `dequantise=True` puts plain maps in the
    place of all its quantised ones; `unmerge` puts the quantised ones back.
    """
    record_ = record(model)
    record_.switch.refuse_held()
    if record_.switch.merged:
        raise StateError("the model is merged already")
    if not record_.switch.active:
        raise StateError("no adapter is active: activate what is to be merged")
    intact(model, record_.acting())
    _refuse_unmergeable(record_)
    sharded.reshard(model)
    done: list[Host] = []
    codes = decode(unwrap(model)) if dequantise else {}
    try:
        shared = tied(unwrap(model))
        for host in _hosts(record_):
            host.merge(shared)
            done.append(host)
    except Exception:
        for host in done:
            host.unmerge()
        encode(unwrap(model), codes)
        raise
    record_.codes = codes
    record_.switch.set(record_.switch.composition, merged=True)
    return model


def _refuse_unmergeable(record_: Record) -> None:
    """Every law must be a change of weights; none may be left out in silence."""
    for adapter in record_.acting():
        for site, method in adapter.entries:
            own = type(method)
            if own.affine is Method.affine and own.rewrite is Method.rewrite:
                raise StateError(
                    f"{method.name} at {site!r} changes no weights: adapter {adapter.name!r} "
                    "cannot be merged"
                )
    if isinstance(record_.switch.composition, Route):
        raise StateError(
            "adapters that are routed by example have no one weight: activate one to merge it"
        )


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge`: the base's weights are what they were, bit for bit."""
    record_ = record(model)
    if not record_.switch.merged:
        raise StateError("the model is not merged")
    sharded.reshard(model)
    for host in _hosts(record_):
        host.unmerge()
    encode(unwrap(model), record_.codes)
    record_.codes = {}
    record_.switch.set(record_.switch.composition)
    return model


def _hosts(record_: Record) -> list[Host]:
    """The hosts of the active adapters, each once."""
    found = {id(h): h for adapter in record_.acting() for h in hosts_of(adapter.hosts)}
    return list(found.values())
