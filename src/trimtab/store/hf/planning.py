"""A configuration of HF PEFT, in memory, as sites and methods: what `attach` is given."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from torch import nn

from trimtab.core.errors import InputError, SiteNotFound
from trimtab.core.method import Method, Names
from trimtab.core.registry import lookup
from trimtab.core.site import Site
from trimtab.match import sites
from trimtab.methods.whole import Whole
from trimtab.store.hf import experts, parameters
from trimtab.store.hf.defaults import feedforward, targets
from trimtab.store.hf.fields import (
    BIASES,
    CONFIG,
    PARAMETERS,
    ROWS,
    STARTS,
    arguments,
    chosen,
    is_off,
)
from trimtab.store.hf.targets import heads, is_target, linears, modules, names, tied, token_ids
from trimtab.store.native import saved_method

Pairs = list[tuple[Site, Method]]


_PROMPTS = {
    "PROMPT_TUNING": "trimtab.PromptTuning(length=…, start=…)",
    "P_TUNING": "trimtab.PTuning(length=…, encoder=…)",
    "MULTITASK_PROMPT_TUNING": "trimtab.MultitaskPrompt(length=…, tasks=…, rank=…, start=…)",
    "PREFIX_TUNING": "trimtab.PrefixTuning(length=…, projection=…)",
}


def plan(config: Any, model: nn.Module) -> Pairs:
    """(site, method) for all the sites that HF PEFT would choose, in the model's order.

    `config` is an object with a `peft_type`, such as `peft.LoraConfig(...)`, or its fields.
    """
    fields = _fields(config)
    if fields.get("peft_type") in _PROMPTS:
        raise InputError(
            f"{CONFIG}: a new adapter of {fields['peft_type']} is attached as "
            f"{_PROMPTS[fields['peft_type']]}, which says where its prompt starts"
        )
    experts.convert(fields, model)
    _complete(fields, model)
    cls, named = chosen(fields)
    for field, allowed in STARTS.items():
        known_here = named.more is not None and field in named.more.names
        if field in fields and fields[field] != allowed[0] and not known_here:
            raise InputError(
                f"{CONFIG}: {field}={fields[field]!r}: a new adapter starts as {cls.name} starts "
                f"({field}={allowed[0]!r}); other starts follow, such as trimtab.init.pissa(model)"
            )
    every = sites(model)
    known = modules(every)
    tensors = {one.site.name: one.key for one in parameters.named(fields, cls, named, every)}
    all_linear = linears(model, known, fields.get("task_type"))
    whole = _whole(fields, known)
    called = {site.name for site in known}
    pairs: Pairs = []
    for site in every:
        by_name = tensors.get(site.name)
        if by_name is not None:
            pairs.append((site, arguments(fields, cls, named, by_name)))
        if site.name not in called:
            continue
        if site.name in whole:
            pairs.append((site, Whole()))
            continue
        targeted = is_target(fields, site.name, all_linear)
        if targeted and by_name is not None:
            raise InputError(
                f"{CONFIG}: target_parameters names {by_name!r}, and target_modules its module: "
                "HF PEFT adapts one or the other"
            )
        if targeted:
            at_site = _orientation(fields, site) if named.oriented else {}
            method = arguments(fields, cls, named, site.name, **at_site)
            if cls.name == ROWS:
                pairs += _rows(site, fields.get("token_indices"), known)
                continue
            if reason := method.accepts(site):
                raise InputError(f"{method.name} cannot act at {site.name!r}: {reason}")
            pairs.append((site, method))
        if rows := token_ids(fields, site.name, site):
            pairs += _rows(site, rows, known)
        if _shifted(fields, named, site, targeted or by_name is not None):
            pairs.append((site, lookup(BIASES)()))
    if not any(isinstance(method, cls) for _, method in pairs):
        able = {one.name.rpartition(".")[2] for one in known if cls().accepts(one) is None}
        raise SiteNotFound(
            f"HF PEFT's configuration: no module of {type(model).__name__} that {cls.name} can act "
            f"on matches target_modules={fields.get('target_modules')!r}; there are "
            f"{sorted(able)[:12]}"
        )
    return pairs


def _rows(site: Site, rows: Any, known: list[Site]) -> Pairs:
    """Tokens of an embedding, at all that is tied to it."""
    every = tied(site, known)
    method = saved_method(ROWS, {"rows": rows, "tied": len(every) > 1})
    return [(one, method) for one in every]


def _fields(config: Any) -> dict[str, Any]:
    """The fields as a file holds them: sets as lists, enumerations as their values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    return {key: _plain(value) for key, value in config.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
        return value if any(not is_off(one) for one in value.values()) else {}
    if isinstance(value, enum.Enum):
        return value.value
    return sorted(value) if isinstance(value, set) else value


def _complete(fields: dict[str, Any], model: nn.Module) -> None:
    """What HF PEFT fills in by itself: the head to be trained, and targets by the model's type."""
    kind = str(getattr(getattr(model, "config", None), "model_type", None))
    if fields.get("peft_type") == "TRAINABLE_TOKENS" and fields.get("target_modules") is None:
        fields["target_modules"] = [site.name for site in sites(model) if "embedding" in site.roles]
    if fields.get("target_modules") is None:
        try:
            fields["target_modules"] = targets(str(fields.get("peft_type")), kind)
        except InputError:
            if is_off(fields.get(PARAMETERS)):
                raise
            fields["target_modules"] = []
    if "feedforward_modules" in fields and fields["feedforward_modules"] is None:
        fields["feedforward_modules"] = feedforward(kind)
    if head := heads(fields):
        fields["modules_to_save"] = [*(fields.get("modules_to_save") or ()), *head]


def _whole(fields: Mapping[str, Any], known: list[Site]) -> set[str]:
    """The modules with parameters of their own within those to be saved; HF PEFT goes by the end
    of the name.
    """
    found: set[str] = set()
    for name in dict.fromkeys(fields.get("modules_to_save") or ()):
        tops = [site.name for site in known if any(path.endswith(name) for path in site.paths)]
        inside = [s for s in known if any(f"{s.name}.".startswith(f"{top}.") for top in tops)]
        holding = [s for s in inside if any(True for _ in s.module.parameters(recurse=False))]
        if not holding and name not in heads(fields):
            raise SiteNotFound(f"{CONFIG}: modules_to_save: no module with parameters is {name!r}")
        for site in holding:
            if reason := Whole().accepts(site):
                raise InputError(f"{site.name!r} cannot be trained whole: {reason}")
        found |= {site.name for site in holding}
    return found


def _orientation(fields: Mapping[str, Any], site: Site) -> dict[str, str]:
    inputs = names(fields.get("feedforward_modules"), site.name)
    return {"scales": "input" if inputs else "output"}


def _shifted(fields: Mapping[str, Any], named: Names, site: Site, targeted: bool) -> bool:
    """Whether the site's bias trains."""
    if targeted and fields.get("lora_bias"):
        if reason := lookup(BIASES)().accepts(site):
            raise InputError(f"{CONFIG}: lora_bias cannot act at {site.name!r}: {reason}")
        return True
    chosen = fields.get("bias")
    everywhere = chosen == "all" or (targeted and chosen is not None and chosen == named.biases)
    return everywhere and lookup(BIASES)().accepts(site) is None
