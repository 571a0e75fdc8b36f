"""Putting deltas on a model, and taking them off: hosts, companions, hooks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from trimtab import attention
from trimtab.core import logits, quantised, quantiser, stack, watch
from trimtab.core.adapter import RECORD, Adapter, Record
from trimtab.core.delta import Delta, Tensors, params
from trimtab.core.errors import InputError
from trimtab.core.host import Companion, Host, ParameterHost
from trimtab.core.layout import Run, runs, tables
from trimtab.core.method import Beside, Combine, Intervention, Method, Param, Prefix, Prompt
from trimtab.core.site import Site, geometry
from trimtab.core.walk import at, base_parameters, coded, plain, walk
from trimtab.match import ROOT, input_embedding, sites

Where = TypeVar("Where")
Built = tuple[list[tuple[Site, Delta]], dict[str, Tensors]]


def by_method(pairs: Iterable[tuple[Where, Method]]) -> dict[Method, list[Where]]:
    """Where each method acts, in order."""
    grouped: dict[Method, list[Where]] = {}
    for where, method in pairs:
        grouped.setdefault(method, []).append(where)
    return grouped


def build(
    model: nn.Module, pairs: Sequence[tuple[Site, Method]], device: torch.device | None = None
) -> Built:
    """The fresh deltas of an adapter and what they share, not yet on the model; on the sites'
    devices, or on another.
    """
    pairs = [(site, method.settled(site)) for site, method in pairs]
    grouped = by_method(pairs)
    shared: dict[Method, Tensors] = {}
    keys: dict[str, Tensors] = {}
    named: dict[str, int] = {}
    allotted: dict[Method, Sequence[dict[str, Param]]] = {}
    for method, where in grouped.items():
        allotted[method] = method.allot(where)
        if common := method.shared(where):
            shared[method] = Tensors(common, device or where[0].device)
            named[method.name] = same = named.get(method.name, 0) + 1
            keys[method.name if same == 1 else f"{method.name}-{same}"] = shared[method]
    deltas, places = [], {method: itertools.count() for method in grouped}
    for site, method in pairs:
        if ignored := method.ignored(site):
            raise InputError(
                f"{method.name}: no {ignored} can act on the input of {site.name!r}, since "
                f"{type(site.module).__name__} reads that weight itself: set {ignored}=0 there (by "
                "a plan, target -> method, for this site alone), or leave the site out"
            )
        index, total = next(places[method]), len(grouped[method])
        held = {**params(method, site), **allotted[method][index]}
        deltas.append((site, Delta(method, site, index, shared.get(method), device, total, held)))
    _refuse_twice(deltas)
    _refuse_two_kinds(model, deltas)
    _refuse_unread(model, deltas)
    return deltas, keys


def _refuse_two_kinds(model: nn.Module, deltas: Sequence[tuple[Site, Delta]]) -> None:
    """One module is either called, or called with other tensors; not both."""
    kinds: dict[str, type[nn.Module]] = {}
    for site, delta in deltas:
        if _accompanies(site, delta.method):
            continue
        home, wanted = site.homes[0], Host if site.parameter is None else ParameterHost
        current = kinds.setdefault(home, type(at(model, home)))
        if issubclass(current, Host) and current is not wanted:
            raise InputError(
                f"{delta.method.name} cannot act at {site.name!r}: another edit acts on "
                f"{home!r} {'as a whole' if current is Host else 'by its tensors'}"
            )
        kinds[home] = wanted


def _refuse_unread(model: nn.Module, deltas: Sequence[tuple[Site, Delta]]) -> None:
    """What acts beside a whole sublayer needs a map that reads the sublayer's input."""
    reading = [(site, delta) for site, delta in deltas if _reads(delta.method)]
    entries = {site.name: site for site in sites(model)} if reading else {}
    for site, delta in reading:
        entry = entries.get(site.entry or "")
        if entry is None or entry.parameter or entry.in_features != site.out_features:
            raise InputError(
                f"{delta.method.name} reads the input of a whole sublayer, and of {site.name!r} no "
                "map is known that reads it"
            )


def _accompanies(site: Site, method: Method) -> bool:
    """Whether the delta stands in a child of its site's module, and not over a map."""
    return isinstance(method, Prompt | Prefix | Beside) or site.geometry.kind == "stack"


def _refuse_twice(deltas: Sequence[tuple[Site, Delta]]) -> None:
    seen = set()
    for site, delta in deltas:
        if (site.name, delta.key) in seen:
            raise InputError(f"{delta.method.name} acts once at a site, not twice: {site.name!r}")
        seen.add((site.name, delta.key))


def place(model: nn.Module, record: Record, name: str, built: Built) -> Adapter:
    """Put deltas on the model as one adapter; after an error the model is as it was."""
    deltas, shared = built
    adapter = Adapter(name, tuple((site.name, delta.method) for site, delta in deltas))
    adapter.shared = shared
    try:
        _place(model, record, adapter, deltas)
    except BaseException:
        withdraw(model, record, adapter)
        raise
    return adapter


def withdraw(model: nn.Module, record: Record, adapter: Adapter) -> None:
    """Take off whatever of an adapter is on the model."""
    remove(model, record, adapter)
    if not record.adapters:
        release(model, record)


def _place(
    model: nn.Module, record: Record, adapter: Adapter, deltas: Sequence[tuple[Site, Delta]]
) -> None:
    name = adapter.name
    watched: dict[str, dict[str, Host]] = {}
    for site, delta in deltas:
        if _accompanies(site, delta.method):
            holder: Host | Companion = _companion(site, record)
        else:
            holder = _host(model, site, record)
            watched.setdefault(site.homes[0].rpartition(".")[0], {})[site.name] = holder
        holder.add(name, delta) if isinstance(holder, Host) else holder.add(name, delta.key, delta)
        adapter.hosts[site.name] = holder
        adapter.members.append(delta)
    for parent, hosts in watched.items():
        watch.notice_skipped(model.get_submodule(parent), hosts)
    root = Site(ROOT, model, geometry(model), homes=("",))
    for key, held in adapter.shared.items():
        _companion(root, record).add(name, key, held)
    _connect(model, record, adapter)


def _host(model: nn.Module, site: Site, record: Record) -> Host:
    """The host in the place of the site's module: the one that is there, or a new one."""
    current = at(model, site.homes[0])
    kind = Host if site.parameter is None else ParameterHost
    if isinstance(current, Host):
        current.admit(site)
        return current
    if site.homes[0] == "":
        raise InputError(
            f"{site.name!r} is the model itself, which has no place to be put into: wrap it in "
            "another module, such as torch.nn.Sequential"
        )
    host = kind(site, record.switch)
    put(model, site.homes, host)
    return host


def _companion(site: Site, record: Record) -> Companion:
    """The child called `deltas` of the site's module."""
    found = site.module._modules.get("deltas")
    if not isinstance(found, Companion):
        found = Companion(site, record.switch)
        found.training = site.module.training
        site.module._modules["deltas"] = found
    return found


def put(model: nn.Module, paths: Sequence[str], module: nn.Module) -> None:
    """Hang a module at these places of the tree."""
    for path in paths:
        parent, _, leaf = path.rpartition(".")
        above = model.get_submodule(parent)
        for holder in (above, above.base) if isinstance(above, Host) else (above,):
            holder._modules[leaf] = module


def _connect(model: nn.Module, record: Record, adapter: Adapter) -> None:
    """What the adapter's laws need from elsewhere: inputs of sublayers, outputs of blocks, the
    attention function."""
    entries = {site.name: site for site in sites(model)} if _reads_entry(adapter) else {}
    for site, delta in adapter.deltas():
        if _reads(delta.method):
            entry = entries[delta.site.entry or ""]
            _host(model, entry, record).tapped[adapter.name] = entry.name
            _host(model, entries[site], record).reads[adapter.name] = entry.name
    if _hooked(adapter, record):
        reconnect(model, record)


def _hooked(adapter: Adapter, record: Record) -> bool:
    """Whether hooks must be hung anew once the adapter's hosts have come or gone: its own, and
    those that others have at blocks, which stand on what is at a block's place now."""
    if any(isinstance(method, Beside | Prompt | Prefix | Combine) for method in adapter.methods):
        return True
    return any(other.beside for other in record.adapters.values())


def _reads_entry(adapter: Adapter) -> bool:
    return any(_reads(method) for _, method in adapter.entries)


def _reads(method: Method) -> bool:
    return isinstance(method, Intervention) and method.reads_entry


def reconnect(model: nn.Module, record: Record) -> None:
    """Hooks at stacks and attentions, as the adapters that are there need them."""
    for _, module in walk(model):
        for kind in _MOVING:
            watch.drop(module, kind)
            watch.drop(plain(module), kind)
    for run in runs(model):
        module = model.get_submodule(run.name)
        companion = module._modules.get("deltas")
        held = companion if isinstance(companion, Companion) else None
        leave = stack.LeaveStack(record.switch, run.name or ROOT)
        leave.companion = held
        if held is not None and held.site.geometry.kind == "stack":
            cut = stack.CutStates(record.switch, run.name or ROOT)
            module.register_forward_hook(cut, prepend=True)  # at the root, while the call lasts
            model.get_submodule(run.leave).register_forward_hook(leave, prepend=True)
            if any(isinstance(method, Beside) for method in _methods(held)):
                _tap(model, record, run)
        prefixes = []
        for _, one in walk(module):
            child = one._modules.get("deltas")
            if isinstance(child, Companion) and child.site.geometry.kind == "attention":
                prefixes.append(child)
                if any(isinstance(m, Prefix) and m.reads_input for m in _methods(child)):
                    one.register_forward_pre_hook(stack.TapInput(child), with_kwargs=True)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, stack.EnterStack):
                hook.attention = [c for c in prefixes if "self-attention" in c.site.roles]
                hook.tables = tables(module)
                attention.connect_biases(module)
                for table in hook.tables if hook.attention else ():
                    table.register_forward_pre_hook(stack.ShiftPositions(hook), with_kwargs=True)
    attention.connect(model)


def _methods(companion: Companion) -> Iterator[Method]:
    """What acts there, of all adapters."""
    for name in companion._modules:
        yield from (delta.method for delta in companion.of(name).values())


def _tap(model: nn.Module, record: Record, run: Run) -> None:
    for index, block in enumerate(run.blocks):
        tap = stack.Tap(record.switch, f"{run.name or ROOT}#{index}")
        model.get_submodule(block).register_forward_hook(tap)


def guard(model: nn.Module, record: Record) -> None:
    """Freeze the base, and watch the model from now on."""
    model.__dict__[RECORD] = record
    for _, module in coded(model):
        quantised.hold(module)
    quantiser.trains(model)
    for _, parameter in base_parameters(model):
        parameter.requires_grad_(False)
    record.nested_before = tuple(name for name, module in walk(model) if _nests(plain(module)))
    for name in record.nested_before:  # layers under adapters do not take nested tensors
        model.get_submodule(name).use_nested_tensor = False  # type: ignore[assignment]
    own = frozenset(stack.parameters_of(model))
    model.register_forward_pre_hook(stack.EnterModel(record.switch, own), with_kwargs=True)
    all_ = runs(model)
    for run in (run for run in all_ if run.takes):
        module = model.get_submodule(run.name)
        names = stack.parameters_of(module)
        read = not run.decoder and any(other.decoder for other in all_)
        enter = stack.EnterStack(record.switch, run.name or ROOT, names, read)
        module.register_forward_pre_hook(enter, with_kwargs=True)
        if module is not model:
            module.register_forward_hook(watch.PinStack(record.switch))
    model.register_forward_hook(watch.PinVersion(record.switch), always_call=True)
    if hasattr(model, "get_output_embeddings"):
        model.register_forward_hook(watch.OutputSkipped())
        if type(head := plain(model.get_output_embeddings())) is nn.Linear:
            head.register_forward_pre_hook(logits.HoldBack())
    for _, module in walk(model):
        module = plain(module)
        if geometry(module).kind == "linear":
            module.register_forward_pre_hook(watch.contiguous_input)
    embedding = input_embedding(model)
    if embedding is not None and getattr(model, "main_input_name", "input_ids") != "input_ids":
        embedding.register_forward_hook(watch.InputGradients(model))
    for run in (run for run in all_ if not run.takes):
        module = model.get_submodule(run.name)
        module.register_forward_pre_hook(watch.StackGradients(model), with_kwargs=True)
        if module is not model:
            module.register_forward_pre_hook(stack.EnterBlocks(record.switch), with_kwargs=True)
            module.register_forward_hook(watch.PinStack(record.switch))


def remove(model: nn.Module, record: Record, adapter: Adapter) -> None:
    """Take an adapter's deltas off; a host without any gives its place back."""
    shared = model._modules.get("deltas")
    if isinstance(shared, Companion) and adapter.name in shared._modules:
        shared.drop(adapter.name)
    for holder in {id(host): host for host in adapter.hosts.values()}.values():
        held: Any = holder.deltas if isinstance(holder, Host) else holder
        if adapter.name in held._modules:
            held.drop(adapter.name)
    kept = {id(h) for other in record.adapters.values() for h in other.hosts.values()}
    for path, module in list(walk(model, once=False)):
        if isinstance(module, Host):
            module.tapped.pop(adapter.name, None)
            module.reads.pop(adapter.name, None)
            if id(module) not in kept and not module.tapped and not module.deltas._modules:
                put(model, [path], module.base)
                watch.overlook(model, module)
        companion = module._modules.get("deltas")
        if isinstance(companion, Companion) and not companion._modules:
            del module._modules["deltas"]
    if _hooked(adapter, record):
        reconnect(model, record)


def release(model: nn.Module, record: Record) -> None:
    """The model is the base again."""
    model.__dict__.pop(RECORD, None)
    for _, module in coded(model):
        quantised.release(module)
    quantiser.trains_no_more(model)
    for _, module in walk(model):
        for hook in HOOKS:
            watch.drop(module, hook)
    for name, parameter in base_parameters(model):
        parameter.requires_grad_(name in record.trained_before)
    for name in record.nested_before:
        model.get_submodule(name).use_nested_tensor = True  # type: ignore[assignment]


def _nests(module: nn.Module) -> bool:
    return isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor


_MOVING: tuple[Any, ...] = (
    *(stack.LeaveStack, stack.CutStates, stack.Tap, stack.TapInput, stack.ShiftPositions),
    attention.Wrap,
)
"""Hooks of companions, hung anew with every adapter that needs them."""

HOOKS: tuple[Any, ...] = (
    *(
        watch.PinVersion,
        watch.PinStack,
        watch.NoticeSkipped,
        watch.OutputSkipped,
        logits.HoldBack,
        watch.InputGradients,
    ),
    *(watch.StackGradients, watch.contiguous_input, quantised.KeepBias, quantised.PassGradient),
    *(stack.EnterModel, stack.EnterStack, stack.EnterBlocks),
    *_MOVING,
)
"""All that we hang on a model, to be dropped with its last adapter."""


def tied(model: nn.Module) -> dict[int, list[str]]:
    """Of every parameter that several modules hold (tied weights): their names."""
    found: dict[int, list[str]] = {}
    for name, module in walk(model):
        for parameter in module.parameters(recurse=False):
            found.setdefault(id(parameter), []).append(name)
    return {key: names for key, names in found.items() if len(names) > 1}


def hosts_of(hosts: Mapping[str, Host | Companion]) -> list[Host]:
    """The hosts among them, each once."""
    return list({id(h): h for h in hosts.values() if isinstance(h, Host)}.values())
