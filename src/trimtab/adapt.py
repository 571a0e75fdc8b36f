"""The verbs that change a model in memory: attach, detach, activate, merge, unmerge."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from trimtab.core import sharded, watch
from trimtab.core.adapter import RECORD, Adapter, Record, carries, record, unwrap
from trimtab.core.compose import Stack, order
from trimtab.core.delta import Delta
from trimtab.core.errors import InputError, SiteNotFound, StateError, nearest
from trimtab.core.host import Host
from trimtab.core.method import Method, Selection
from trimtab.core.site import Site, geometry
from trimtab.match import Target, match, sites
from trimtab.methods.whole import Whole

Plan = Mapping[str, Method]
"""Target -> method. A site that several targets name goes to the first."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def attach(
    model: nn.Module,
    method: Method | Plan,
    to: Target | None = None,
    *,
    name: str = "default",
    train: Sequence[str] = (),
) -> Adapter:
    """Freeze the base, put a new adapter on it, make it the active one, and return it.

    Args:
        model: any module; it is changed in place.
        method: what to do at every site, or a plan: target -> method.
        to: the target, see `match`; left out, the method's own (LoRA: all linear maps).
        name: the adapter's name on this model.
        train: modules to train whole beside it, by name, such as a new head.

    Raises:
        InputError: a name that is taken or no name; two targets that need one name each.
        SiteNotFound: a target, or a module of `train`, that names nothing the method can act on.
    """
    for one in method.values() if isinstance(method, Mapping) else [method]:
        if not isinstance(one, Method):
            raise InputError(f"a method is an object such as trimtab.LoRA(rank=8), not {one!r}")
    model = unwrap(model)
    refuse_wrapped(model)
    record_ = admit(model, name)
    with _upon_base(model, record_):
        if isinstance(method, Selection):
            if to is not None or train:
                raise InputError(
                    f"{method.name} chooses its parameters: leave `to` and `train` out"
                )
            return install(model, record_, select(model, method, name))
        pairs = _pairs(model, method, to, train)
        return place(model, record_, name, [(site, build(model, site, one)) for site, one in pairs])


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
    before = record_.switch.active
    if before:
        activate(model, None)
    try:
        yield
    except BaseException:
        if before:
            activate(model, Stack(*before))
        raise


def admit(model: nn.Module, name: str) -> Record:
    """The record under which a new adapter of this name can be put on the model now."""
    record_ = _record(model)
    sharded.refuse(model)
    record_.switch.refuse_held()
    if not _NAME.fullmatch(name):
        raise InputError(f"an adapter's name has letters, digits, '_' and '-' only, not {name!r}")
    if name in record_.adapters:
        raise InputError(
            f"the model already carries an adapter {name!r}: detach it, or choose another"
        )
    if record_.switch.merged:
        raise StateError("the model is merged: unmerge it before attaching another adapter")
    return record_


def _record(model: nn.Module) -> Record:
    if carries(model):
        return record(model)
    trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    return Record(trained_before=trained)


def install(model: nn.Module, record_: Record, adapter: Adapter) -> Adapter:
    """From here on the model carries the adapter; with the first one it is frozen and watched."""
    record_.adapters[adapter.name] = adapter
    if RECORD not in model.__dict__:
        model.__dict__[RECORD] = record_
        for name, parameter in model.named_parameters():
            if ".deltas." not in name:
                parameter.requires_grad_(False)
        model.register_forward_hook(watch.PinVersion(record_.switch))
        if hasattr(model, "get_output_embeddings"):
            model.register_forward_hook(watch.OutputSkipped())
        _guard_inputs(model)
    activate(model, adapter.name)
    return adapter


def _guard_inputs(model: nn.Module) -> None:
    for module in model.modules():
        module = module.base if isinstance(module, Host) else module
        if geometry(module).kind == "linear":
            module.register_forward_pre_hook(watch.contiguous_input)
    embeddings = getattr(model, "get_input_embeddings", None)
    if embeddings is not None and getattr(model, "main_input_name", "input_ids") != "input_ids":
        embeddings().register_forward_hook(watch.InputGradients(model))


def _pairs(
    model: nn.Module, method: Method | Plan, to: Target | None, train: Sequence[str]
) -> list[tuple[Site, Method]]:
    """Which method acts at which site, in the model's order."""
    if isinstance(method, Mapping) and to is not None:
        raise InputError("a plan names its own targets: leave `to` out")
    plan = method if isinstance(method, Mapping) else {None: method}
    whole = {site.name: (site, Whole()) for site in _trained_whole(model, train)}
    pairs: dict[str, tuple[Site, Method]] = dict(whole)
    for target, one in plan.items():
        found = match(model, to or one.targets if target is None else target, one)
        pairs.update({site.name: (site, one) for site in found if site.name not in pairs})
    if len(pairs) == len(whole):
        raise SiteNotFound(
            "every site that the target names is trained whole: nothing is left for it"
        )
    ordered = {site.name: index for index, site in enumerate(sites(model))}
    return sorted(pairs.values(), key=lambda pair: ordered[pair[0].name])


def _trained_whole(model: nn.Module, train: Sequence[str]) -> list[Site]:
    """The modules with parameters of their own within each named module."""
    known = sites(model)
    found: list[Site] = []
    for name in train:
        full = {s.name for s in known if f".{s.name}".endswith(f".{name}")}
        inside = [s for s in known if any(f"{s.name}.".startswith(f"{top}.") for top in full)]
        holding = [s for s in inside if any(True for _ in s.module.parameters(recurse=False))]
        for site in holding:
            if reason := Whole().accepts(site):
                raise InputError(f"{site.name!r} cannot be trained whole: {reason}")
        if not holding:
            names = {s.name for s in known} | {s.name.rpartition(".")[2] for s in known}
            raise SiteNotFound(
                f"no module with parameters matches {name!r}, to be trained whole; "
                f"{nearest(name, names)}"
            )
        found += [site for site in holding if site not in found]
    return found


def build(model: nn.Module, site: Site, method: Method) -> Delta:
    """A method's fresh parameters at a site, not yet on the model."""
    _refuse_shortcut(model, site, method)
    return Delta(method, site)


def place(
    model: nn.Module, record_: Record, name: str, deltas: Sequence[tuple[Site, Delta]]
) -> Adapter:
    """Put deltas on the model as one adapter. All that can fail has been done before."""
    adapter = Adapter(name, tuple((site.name, delta.method) for site, delta in deltas))
    parents: dict[str, dict[str, Host]] = {}
    for site, delta in deltas:
        current = model.get_submodule(site.name)
        host = current if isinstance(current, Host) else Host(site, record_.switch)
        host.add(name, delta)
        adapter.hosts[site.name] = host
        _put(model, site.paths, host)
        parents.setdefault(site.name.rpartition(".")[0], {})[site.name] = host
    for parent, hosts in parents.items():
        model.get_submodule(parent).register_forward_hook(watch.NoticeSkipped(hosts))
    return install(model, record_, adapter)


def _refuse_shortcut(model: nn.Module, site: Site, method: Method) -> None:
    """Some parents read their child's weight, in some modes, and never call it."""
    parent = model.get_submodule(site.name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        raise InputError(
            f"{method.name} cannot act at {site.name!r}: {type(parent).__name__} reads its weight "
            "directly and never calls it; choose a target that leaves it out"
        )


def _put(model: nn.Module, paths: Sequence[str], module: nn.Module) -> None:
    for path in paths:
        parent, _, leaf = path.rpartition(".")
        above = model.get_submodule(parent)
        for holder in (above, above.base) if isinstance(above, Host) else (above,):
            holder._modules[leaf] = module


def select(model: nn.Module, method: Selection, name: str) -> Adapter:
    """An adapter of the base's own parameters, with what they are now kept for `detach`."""
    own = {key: p for key, p in model.named_parameters() if ".deltas." not in key}
    chosen = {key: own[key] for key in method.chosen(model) if key in own}
    if not chosen:
        raise SiteNotFound(
            f"{method.name} finds no parameter of its own to train in {type(model).__name__} "
            "(a head that is tied to the embedding has none)"
        )
    base = record(model).originals() if carries(model) else {}
    originals = {key: base.get(key, p).detach().clone() for key, p in chosen.items()}
    return Adapter(name, (("", method),), selected=chosen, originals=originals)


def activate(model: nn.Module, composition: str | Stack | None) -> None:
    """Let these adapters act: a name, a `Stack` of names, or None for the base alone.

    The parameters of what is active train; those of what is not do not.
    """
    record_ = record(model)
    record_.switch.refuse_held()
    names = composed(record_, composition)
    before = record_.switch.active
    for name in (name for name in before if name not in names):
        _set_trained(record_.adapters[name], active=False)
    for name in (name for name in names if name not in before):
        _set_trained(record_.adapters[name], active=True)
    record_.switch.set(names)


def composed(record_: Record, composition: str | Stack | None) -> tuple[str, ...]:
    """The adapters of a composition, once it is known that they can act together now."""
    names = order(composition)
    adapters = [record_.adapter(name) for name in names]
    if record_.switch.merged:
        raise StateError("the model is merged: unmerge it before activating another adapter")
    if len(set(names)) < len(names):
        raise InputError(f"an adapter acts once in a stack, not twice: {names}")
    _refuse_two_heads(adapters)
    if sum(adapter.selection is not None for adapter in adapters) > 1:
        raise InputError("of adapters that change the base's own parameters only one can be active")
    return names


def _refuse_two_heads(adapters: Sequence[Adapter]) -> None:
    """A module trained whole replaces what lies beneath it, and so stands alone at its site."""
    owner: dict[str, str] = {}
    for adapter in adapters:
        for site, method in adapter.entries:
            if site in owner and (isinstance(method, Whole) or owner[site] == Whole.name):
                raise InputError(
                    f"{site!r} is trained whole by one adapter of the stack, and another acts "
                    "there too"
                )
            owner[site] = method.name


def _set_trained(adapter: Adapter, *, active: bool) -> None:
    for parameter in adapter.parameters():
        parameter.requires_grad_(active and adapter.trainable)
    if adapter.selection is not None and active != adapter.in_place:
        adapter.exchange()


def detach(model: nn.Module, name: str | None = None, *, keep: bool = False) -> nn.Module:
    """Remove an adapter (the only one, if no name is given); the rest stay as they are, bit for
    bit.

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
            for host in adapter.hosts.values():
                host.forget()
    elif record_.switch.merged:
        raise StateError("the model is merged: unmerge it first, or detach with keep=True")
    for gone in list(record_.adapters) if keep else [record_.adapter(name).name]:
        _remove(model, record_, gone, keep)
    return model


def _remove(model: nn.Module, record_: Record, name: str, keep: bool) -> None:
    adapter = record_.adapters.pop(name)
    if not keep:
        _set_trained(adapter, active=False)
    record_.switch.set(tuple(active for active in record_.switch.active if active != name))
    paths = {site.name: site.paths for site in sites(model)} if adapter.hosts else {}
    for site, host in adapter.hosts.items():
        del host.deltas[name]
        if not host.deltas:
            _put(model, paths[site], host.base)
            watch.overlook(model.get_submodule(site.rpartition(".")[0]), host)
    if not record_.adapters:
        _release(model, record_)


def _release(model: nn.Module, record_: Record) -> None:
    del model.__dict__[RECORD]
    for module in model.modules():
        for hook in watch.HOOKS:
            watch.drop(module, hook)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in record_.trained_before)


def merge(model: nn.Module) -> nn.Module:
    """Write the active adapters into the base's weights; the model then runs at the base's own
    speed.

    Until `unmerge`, saving the model writes an ordinary checkpoint with the merged weights.
    """
    record_ = record(model)
    record_.switch.refuse_held()
    if record_.switch.merged:
        raise StateError("the model is merged already")
    if not record_.switch.active:
        raise StateError("no adapter is active: activate what is to be merged")
    sharded.reshard(model)
    done: list[Host] = []
    try:
        shared = _shared(model)
        for host in _hosts(record_):
            host.merge(shared)
            done.append(host)
    except Exception:
        for host in done:
            host.unmerge()
        raise
    record_.switch.set(record_.switch.active, merged=True)
    return model


def _shared(model: nn.Module) -> dict[int, list[str]]:
    """Of every parameter that several modules hold (tied weights): their names."""
    holders: dict[int, list[str]] = {}
    for name, module in unwrap(model).named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    return {key: names for key, names in holders.items() if len(names) > 1}


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge`: the base's weights are what they were, bit for bit."""
    record_ = record(model)
    if not record_.switch.merged:
        raise StateError("the model is not merged")
    sharded.reshard(model)
    for host in _hosts(record_):
        host.unmerge()
    record_.switch.set(record_.switch.active)
    return model


def _hosts(record_: Record) -> list[Host]:
    """The hosts of the active adapters, each once."""
    found = {
        id(host): host
        for name in record_.switch.active
        for host in record_.adapters[name].hosts.values()
    }
    return list(found.values())


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train: what an optimizer gets."""
    record_ = record(model)
    return [
        parameter
        for name in record_.switch.active
        for parameter in record_.adapters[name].parameters()
        if parameter.requires_grad
    ]
