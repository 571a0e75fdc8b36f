"""What a user asks for -> which method acts at which site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from trimtab.core import parts
from trimtab.core.adapter import Record, carries, record
from trimtab.core.errors import InputError, SiteNotFound, nearest
from trimtab.core.method import Combine, Composite, Method, Selection
from trimtab.core.site import Site
from trimtab.match import Target, among, sites
from trimtab.methods.whole import Whole

Methods = Method | Sequence[Method]
Plan = Mapping[str, Methods]
"""Target -> method, or several that act there one upon the other. A site that several targets name
goes to the first."""


def choose(
    model: nn.Module, method: Methods | Plan, to: Target | None, train: Sequence[str]
) -> list[tuple[Site, Method]]:
    """(site, method) in the model's order; see `attach`."""
    parts.load()
    for attribute, read in _foreign.items():
        if hasattr(method, attribute):
            if to is not None or train:
                raise InputError(
                    f"{type(method).__name__} names its modules itself: leave `to` and `train` out"
                )
            return read(method, model)
    return _pairs(model, _plan(method), to, train)


Read = Callable[[Any, nn.Module], list[tuple[Site, Method]]]
_foreign: dict[str, Read] = {}


def understand(attribute: str, read: Read) -> None:
    """Take configurations of another library, known by an attribute that they have."""
    _foreign[attribute] = read


def _plan(method: Methods | Plan) -> list[tuple[str | None, Method]]:
    """(target, method) in order; no target: the method's own."""
    if isinstance(method, Mapping):
        listed = [(target, one) for target, ones in method.items() for one in _each(ones)]
    else:
        listed = [(None, one) for one in _each(method)]
    for target, one in listed:
        if not isinstance(one, Method):
            raise InputError(f"a method is an object such as trimtab.LoRA(rank=8), not {one!r}")
        if isinstance(one, Selection):
            raise InputError(f"{one.name} trains the base's own parameters, and stands alone")
        if isinstance(one, Composite) and target is not None:
            raise InputError(
                f"{one.name} stands for several methods with a target each: name its parts in the "
                f"plan instead, {one.parts()}"
            )
    if not listed:
        raise InputError("no method is given: nothing would be adapted")
    return [(target, part) for target, one in listed for part in one.parts()]


def _each(methods: Any) -> list[Any]:
    return list(methods) if isinstance(methods, list | tuple) else [methods]


def _pairs(
    model: nn.Module,
    plan: list[tuple[str | None, Method]],
    to: Target | None,
    train: Sequence[str],
) -> list[tuple[Site, Method]]:
    """Which method acts at which site, in the model's order."""
    if to is not None and any(target is not None for target, _ in plan):
        raise InputError("a plan names its own targets: leave `to` out")
    if to is not None and len(plan) > 1:
        raise InputError("several methods have a target each: give a plan, and leave `to` out")
    known = sites(model)
    held = {site.name: site for site in _trained_whole(known, train)}
    taken: dict[str, object] = dict.fromkeys(held, Whole.name)
    pairs: list[tuple[Site, Method]] = [(site, Whole()) for site in held.values()]
    for place_, (target, one) in enumerate(plan):
        group = target if target is not None else place_
        wanted = target if target is not None else to
        wanted = _own(model, one) if wanted is None else wanted
        for site in among(known, wanted, one):
            owner = taken.get(site.name)
            if owner is None or owner == group or (target is None and owner != Whole.name):
                taken[site.name] = group
                pairs.append((site, one))
    if len(pairs) == len(held):
        raise SiteNotFound(
            "every site that the target names is trained whole: nothing is left for it"
        )
    ordered = {site.name: index for index, site in enumerate(known)}
    return sorted(pairs, key=lambda pair: ordered[pair[0].name])


def _own(model: nn.Module, method: Method) -> Target:
    """The method's own target; of one that combines adapters, wherever those act."""
    if not isinstance(method, Combine):
        return method.targets
    record_ = record(model) if carries(model) else Record()
    names = [name for one in method.over for name in record_.adapter(one).hosts]
    if not names:
        raise InputError(f"{method.name} combines adapters: name them, over=('a', 'b')")
    return tuple(dict.fromkeys(names))


def _holds(site: Site) -> bool:
    """Whether a module, or a child that its reader leaves no place, has parameters of its own."""
    if site.rows is not None or (site.parameter is not None and "." not in site.parameter):
        return False  # a part of what its module holds, which is a site itself
    return any(True for _ in site.module.parameters(recurse=False)) or site.parameter is not None


def _trained_whole(known: list[Site], train: Sequence[str]) -> list[Site]:
    """The modules with parameters of their own within each named module."""
    found: list[Site] = []
    for name in train:
        full = {s.name for s in known if f".{s.name}".endswith(f".{name}")}
        inside = [s for s in known if any(f"{s.name}.".startswith(f"{top}.") for top in full)]
        holding = [s for s in inside if _holds(s)]
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
