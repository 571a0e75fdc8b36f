"""Targets to sites: by role, by glob, by regular expression, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from trimtab.core.errors import InputError, SiteNotFound, nearest
from trimtab.core.heads import heads
from trimtab.core.host import Host
from trimtab.core.method import Method
from trimtab.core.site import Site, geometry

Target = str | re.Pattern[str] | Sequence["str | re.Pattern[str]"]

ROLES = {
    "all-linear": "every linear map but the head",
    "attention": "the linear maps of attention",
    "query": "attention's query maps, fused qkv included",
    "key": "attention's key maps, fused qkv included",
    "value": "attention's value maps, fused qkv included",
    "mlp": "the linear maps of the feed-forward layers",
    "down": "the feed-forward maps that narrow",
    "head": "the linear maps of the model's head",
    "biases": "everything that has a bias, but the head",
}

_QKV = r"c_attn|qkv|qkv_proj|query_key_value|in_proj|Wqkv"
_PARTS = {
    "query": re.compile(rf"(q|query|q_proj|q_lin|query_proj|{_QKV})"),
    "key": re.compile(rf"(k|key|k_proj|k_lin|key_proj|{_QKV})"),
    "value": re.compile(rf"(v|value|v_proj|v_lin|value_proj|{_QKV})"),
}
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def sites(model: nn.Module) -> list[Site]:
    """Every module with parameters of its own or a known geometry, with its roles; tied modules
    once.
    """
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not name or ".deltas." in f".{name}." or name.endswith(".deltas"):
            continue
        module = module.base if isinstance(module, Host) else module
        modules[id(module)] = module
        paths.setdefault(id(module), []).append(name)
    tops = tuple(f"{head}." for head in heads(model))
    return [_site(modules[key], tuple(names), tops) for key, names in paths.items()]


def _site(module: nn.Module, paths: tuple[str, ...], heads: tuple[str, ...]) -> Site:
    shape = geometry(module)
    site = Site(paths[0], module, shape, frozenset(), paths)
    return Site(paths[0], module, shape, _roles(site, heads), paths)


def _roles(site: Site, heads: tuple[str, ...]) -> frozenset[str]:
    linear = site.geometry.kind == "linear"
    if any(f"{path}.".startswith(heads) for path in site.paths if heads):
        return frozenset({"head"} if linear else ())
    found = set()
    if site.bias is not None and site.geometry.kind != "other":
        found.add("biases")
    if linear:
        found |= {"all-linear"} | _place(site)
    return frozenset(found)


def _place(site: Site) -> set[str]:
    """Attention or feed-forward, by the names on the way down; only within a numbered block."""
    *way, leaf = site.name.split(".")
    if not any(part.isdigit() for part in way):
        return set()
    if any(_ATTENTION.search(part) for part in way):
        return {"attention"} | {part for part, names in _PARTS.items() if names.fullmatch(leaf)}
    return {"mlp", "down"} if site.out_features < site.in_features else {"mlp"}


def match(model: nn.Module, target: Target, method: Method) -> list[Site]:
    """The sites that a target names and the method can act on, in the model's order.

    A target is a role (see `ROLES`), a glob over full names (`*.layer.[0-3].*`), a regular
    expression over full names (`re:…` or a compiled pattern), or a name: a module's full name or
    the end of it. A list is the union. Raises `SiteNotFound` where one of them finds nothing.
    """
    known = sites(model)
    wanted: set[str] = set()
    for one in _each(target):
        named = [site for site in known if _selects(one, site)]
        fitting = [site for site in named if method.accepts(site) is None]
        if not fitting:
            raise SiteNotFound(_explain(one, named, known, method))
        wanted |= {site.name for site in fitting}
    return [site for site in known if site.name in wanted]


def _each(target: Target) -> Iterable[str | re.Pattern[str]]:
    return [target] if isinstance(target, str | re.Pattern) else target


def _selects(target: str | re.Pattern[str], site: Site) -> bool:
    return any(_predicate(target, site)(path) for path in site.paths)


def _predicate(target: str | re.Pattern[str], site: Site) -> Callable[[str], bool]:
    if isinstance(target, re.Pattern):
        return lambda path: target.fullmatch(path) is not None
    if target in ROLES:
        return lambda path: target in site.roles
    if target.startswith("re:"):
        pattern = _compile(target[3:])
        return lambda path: pattern.fullmatch(path) is not None
    if any(mark in target for mark in "*?["):
        return lambda path: fnmatchcase(path, target) or fnmatchcase(path, f"*.{target}")
    return lambda path: f".{path}".endswith(f".{target}")


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"target 're:{pattern}' is no regular expression: {error}") from None


def _explain(
    target: str | re.Pattern[str], named: list[Site], known: list[Site], method: Method
) -> str:
    text = target.pattern if isinstance(target, re.Pattern) else target
    if named:
        first = named[0]
        return (
            f"{method.name} cannot act at {first.name!r} ({type(first.module).__name__}), which "
            f"{text!r} names: {method.accepts(first)}"
        )
    if text in ROLES:
        return f"no site has the role {text!r} ({ROLES[text]}) in this model; name modules instead"
    leaves: dict[str, int] = {}
    for site in known:
        if method.accepts(site) is None:
            leaf = site.name.rpartition(".")[2]
            leaves[leaf] = leaves.get(leaf, 0) + 1
    close = nearest(text.rpartition(".")[2], [*leaves, *ROLES])
    for leaf, count in leaves.items():
        close = close.replace(f"{leaf!r}", f"{leaf!r} ({count} site{'s' if count > 1 else ''})")
    return f"no site matches {text!r}; {close}"
