"""Which modules a configuration names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from trimtab.core.site import Site
from trimtab.store.hf.fields import TOKENS, layer_patterns

_CLASSIFIERS = ("score", "classifier")
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Which modules HF PEFT trains whole for a task, where the model has them."""


def modules(sites: Iterable[Site]) -> list[Site]:
    """The sites that are modules, which is all that HF PEFT's files know of here: no parts of fused
    maps, no parameters that a module reads itself.
    """
    return [site for site in sites if site.rows is None and site.parameter is None]


def heads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that a configuration trains whole because of its task."""
    return _HEADS.get(str(config.get("task_type")), ())


def within(path: str, modules: Iterable[str]) -> bool:
    """Whether a path lies in a module of one of these names."""
    return any(f".{module}." in f".{path}." for module in modules)


def saved(path: str, modules: Iterable[str]) -> bool:
    """Whether a path lies in a module that is saved whole: HF PEFT goes by the end of its name, so
    that "classifier" is "pre_classifier" too.
    """
    parts = path.split(".")
    tops = [".".join(parts[: length + 1]) for length in range(len(parts))]
    return any(top.endswith(module) for top in tops for module in modules)


def tied(site: Site, known: Iterable[Site]) -> list[Site]:
    """The sites that hold the same tensor. An embedding whose copies are called in its place is
    none itself.
    """
    every = {one.name: one for one in known if getattr(one.module, "weight", None) is site.weight}
    embeds = [one for one in every.values() if one.geometry.kind == "embedding"]
    unused = {one.name for one in embeds if len(embeds) > 1 and "." not in one.name}
    return [one for name, one in every.items() if name not in unused]


def token_ids(config: Mapping[str, Any], path: str, site: Site) -> list[int] | None:
    """The rows of this module that `trainable_token_indices` names; alone, they are the input
    embedding's.
    """
    chosen = config.get(TOKENS)
    if isinstance(chosen, list):
        return chosen if "embedding" in site.roles else None
    return next((rows for name, rows in (chosen or {}).items() if names([name], path)), None)


def is_target(config: Mapping[str, Any], path: str, linears: Collection[str]) -> bool:
    """Whether a configuration names this module. `linears` are those that "all-linear" means."""
    targets = config.get("target_modules")
    if within(path, config.get("modules_to_save") or ()):
        return False
    if names(config.get("exclude_modules"), path):
        return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return path in linears
    if isinstance(targets, list) and path in targets:
        return True
    return names(targets, path) and (isinstance(targets, str) or _in_layers(config, path))


def names(targets: str | list[str] | None, path: str) -> bool:
    if not targets:
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _in_layers(config: Mapping[str, Any], path: str) -> bool:
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    for pattern in layer_patterns(config):
        found = re.match(pattern, path)
        if found:
            return int(found["index"]) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def linears(model: nn.Module, sites: Iterable[Site], task: str | None) -> set[str]:
    """What "all-linear" means there: every linear map but the output layer, or but the classifier
    where the task is to classify sequences.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:
        head: object = output
    elif task == "SEQ_CLS":
        found = (getattr(model, name, None) for name in _CLASSIFIERS)
        head = next((module for module in found if module is not None), None)
    else:
        head = None
    base = getattr(head, "base", head)
    return {
        path
        for site in sites
        if site.geometry.kind == "linear" and site.module is not base
        for path in site.paths
    }
