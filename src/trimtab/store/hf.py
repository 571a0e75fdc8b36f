"""HF PEFT's adapter folder, read and written; the only file that interprets it.

What a method is called there it declares as data (`Method.hf`). A field that is not understood is
an error only when its value is not off, so that newer files load where they can.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Method, Names
from trimtab.core.registry import methods
from trimtab.core.site import Site
from trimtab.methods.whole import Whole
from trimtab.store.files import read_json, read_tensors, write_json, write_tensors
from trimtab.store.native import saved_method

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

_HARMLESS = {
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",
        "inference_mode",
        "megatron_core",
    ),
    *("peft_type", "peft_version", "qalora_group_size", "revision", "task_type"),
}
_SITES = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "feedforward_modules", "rank_pattern", "alpha_pattern"),
}
_AT_START_ONLY = {
    "init_lora_weights": {True, "gaussian", "orthogonal"},
    "init_ia3_weights": {True},
    "init_weights": {True},
}
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return read_json(folder / CONFIG), read_tensors(folder / TENSORS)


def interpret(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    known: Mapping[str, Site],
    adapter: str,
) -> tuple[list[tuple[Site, Method]], dict[str, Tensor]]:
    """(site, method) pairs, and the tensors under Trimtab's names."""
    cls, names = _method(config)
    _check_fields(config)
    _refuse_unknown(config, cls, names)
    found: dict[str, tuple[Site, Method]] = {}
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path, own = _split(key, names)
        site = known.get(path)
        if site is None:
            raise AdapterMismatch(
                f"adapter {adapter!r}: the tensor {key!r} belongs to {path!r}, which this model "
                "has not"
            )
        method: Method = Whole()
        if own in names.tensors:
            method = cls(**_arguments(config, cls, names, path, tensor))
        elif not _within(path, config.get("modules_to_save") or ()):
            raise AdapterMismatch(
                f"adapter {adapter!r} has a tensor {key!r} that belongs to no site"
            )
        reason = method.accepts(site)
        if reason:
            raise AdapterMismatch(
                f"adapter {adapter!r}: {method.name} cannot act at {path!r}: {reason}"
            )
        found.setdefault(site.name, (site, method))
        renamed[f"{site.name}.{method.name}.{own}"] = tensor
    _require_targets(config, model, known, found, adapter)
    if not found:
        raise AdapterMismatch(f"adapter {adapter!r} has no tensors")
    ordered = [
        found[name] for name in dict.fromkeys(s.name for s in known.values()) if name in found
    ]
    return ordered, renamed


def _method(config: Mapping[str, Any]) -> tuple[type[Method], Names]:
    wanted = config.get("peft_type")
    readable = {cls.hf.peft_type: cls for cls in methods().values() if cls.hf is not None}
    if not isinstance(wanted, str) or wanted not in readable:
        raise InputError(
            f"{CONFIG}: peft_type {wanted!r} cannot be read; known: {sorted(readable)}"
        )
    names = readable[wanted].hf
    assert names is not None
    return readable[wanted], names


def _check_fields(config: Mapping[str, Any]) -> None:
    """The fields that say where the adapter acts: their form, and that patterns are patterns."""
    for field in sorted(_SITES):
        value = config.get(field)
        form, fits = _form(field)
        if value is not None and not fits(value):
            raise InputError(f"{CONFIG}: {field} must be {form}, not {value!r:.60}")
    for field, pattern in _patterns(config):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(f"{CONFIG}: {field} is no regular expression: {error}") from None


def _form(field: str) -> tuple[str, Callable[[Any], bool]]:
    if field in {"rank_pattern", "alpha_pattern"}:
        return "an object", lambda value: isinstance(value, dict)
    if field == "layers_to_transform":
        return (
            "a number or a list of numbers",
            lambda value: _are(int, value) or isinstance(value, int),
        )
    if field == "modules_to_save":
        return "a list of names", lambda value: _are(str, value)
    return "a name or a list of names", lambda value: _are(str, value) or isinstance(value, str)


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, regular expression) for all that are used below, as they are used."""
    for field in ("target_modules", "exclude_modules"):
        if isinstance(config.get(field), str):
            yield field, config[field]
    for field in ("rank_pattern", "alpha_pattern"):
        yield from ((field, _ending(one)) for one in config.get(field) or ())
    yield from (("layers_pattern", pattern) for pattern in _layer_patterns(config))


def _ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _layer_patterns(config: Mapping[str, Any]) -> list[str]:
    """What finds a layer's number in a module's name: its first number, as HF PEFT reads it."""
    patterns = config.get("layers_pattern")
    if not patterns:
        return [r".*?\.[^.]*\.(?P<index>\d+)\."]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return [rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\." for pattern in patterns]


def _refuse_unknown(config: Mapping[str, Any], cls: type[Method], names: Names) -> None:
    understood = _HARMLESS | _SITES | set(names.fields.values())
    for field, value in config.items():
        off = value in (None, False, 0, "", "none") or value == [] or value == {}
        at_start = field in _AT_START_ONLY and any(value == one for one in _AT_START_ONLY[field])
        if field not in understood and not off and not at_start:
            raise InputError(
                f"{CONFIG}: {field}={value!r} has no equal in {cls.name}; such a file cannot be "
                "used here without changing what the adapter does"
            )


def _split(key: str, names: Names) -> tuple[str, str]:
    """A tensor's key there -> (site, our name of the tensor)."""
    path = key.removeprefix(_PREFIX)
    for own, theirs in names.tensors.items():
        if path.endswith(f".{theirs}"):
            return path.removesuffix(f".{theirs}"), own
    site, _, own = path.rpartition(".")
    return site, own


def _arguments(
    config: Mapping[str, Any], cls: type[Method], names: Names, path: str, tensor: Tensor
) -> dict[str, Any]:
    """The method's hyper-parameters at one site: patterns override the common values."""
    arguments = {own: config[theirs] for own, theirs in names.fields.items() if theirs in config}
    for own, pattern in (("rank", "rank_pattern"), ("alpha", "alpha_pattern")):
        for one, value in (config.get(pattern) or {}).items():
            if re.match(_ending(one), path):
                arguments[own] = value
                break
    if names.oriented:
        arguments["scales"] = "input" if tensor.ndim == 2 and tensor.shape[0] == 1 else "output"
    return saved_method(cls.name, arguments).arguments()


def _within(path: str, modules: Iterable[str]) -> bool:
    return any(f".{module}." in f".{path}." for module in modules)


def _require_targets(
    config: Mapping[str, Any],
    model: nn.Module,
    known: Mapping[str, Site],
    found: Mapping[str, Any],
    adapter: str,
) -> None:
    """Every module that the configuration names must have its tensors."""
    for path, site in known.items():
        if site.name not in found and _is_target(config, model, path, site):
            raise AdapterMismatch(f"adapter {adapter!r} misses the tensors of its target {path!r}")


def _is_target(config: Mapping[str, Any], model: nn.Module, path: str, site: Site) -> bool:
    targets = config.get("target_modules")
    if site.geometry.kind != "linear" or _within(path, config.get("modules_to_save") or ()):
        return False
    if _names(config.get("exclude_modules"), path):
        return False
    if targets == "all-linear":
        return "all-linear" in site.roles
    if isinstance(targets, list) and path in targets:
        return True
    return _names(targets, path) and _in_layers(config, path)


def _names(targets: str | list[str] | None, path: str) -> bool:
    if not targets:
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _in_layers(config: Mapping[str, Any], path: str) -> bool:
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    for pattern in _layer_patterns(config):
        found = re.match(pattern, path)
        if found:
            return int(found["index"]) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def write(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """The adapter in HF PEFT's format, or an `InputError` that says what that format cannot
    hold.
    """
    acting = {site: method for site, method in adapter.entries if method.name != Whole.name}
    kinds = {method.name for method in acting.values()}
    if len(kinds) != 1 or (names := next(iter(acting.values())).hf) is None:
        raise InputError(
            f"adapter {adapter.name!r} ({', '.join(sorted(kinds)) or 'whole modules'}) cannot be "
            "written in HF PEFT's format, which holds one method that it knows; use "
            "format='trimtab'"
        )
    tensors = {}
    for site, delta in adapter.deltas():
        for own, tensor in delta.tensors().items():
            theirs = names.tensors[own] if delta.method.name in kinds else own
            tensors[f"{_PREFIX}{site}.{theirs}"] = tensor
    config = _config(model, adapter, acting, names)
    write_tensors(folder / TENSORS, tensors)
    write_json(folder / CONFIG, dict(sorted(config.items())))


def _config(
    model: nn.Module, adapter: Adapter, acting: Mapping[str, Method], names: Names
) -> dict[str, Any]:
    whole = [site for site, method in adapter.entries if method.name == Whole.name]
    usual = Counter(acting.values()).most_common(1)[0][0]
    config: dict[str, Any] = {
        "peft_type": names.peft_type,
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "task_type": _task_type(model, whole),
        "inference_mode": True,
        "target_modules": _target_modules(model, acting),
        "modules_to_save": _tops(model, whole) or None,
        "fan_in_fan_out": all(adapter.hosts[site].geometry.transposed for site in acting),
        **{theirs: getattr(usual, own) for own, theirs in names.fields.items()},
    }
    if names.oriented:
        scaled = {
            site
            for site, d in adapter.deltas()
            if site in acting and d.tensors()[names.oriented].shape[0] == 1
        }
        config["feedforward_modules"] = sorted(scaled)
    for own, pattern in (("rank", "rank_pattern"), ("alpha", "alpha_pattern")):
        if own in names.fields:
            config[pattern] = _differing(acting, usual, own)
    _refuse_mixed(acting, usual, set(names.fields) - {"rank", "alpha"})
    return config


def _differing(acting: Mapping[str, Method], usual: Method, own: str) -> dict[str, Any]:
    return {
        re.escape(site): getattr(method, own)
        for site, method in acting.items()
        if getattr(method, own) != getattr(usual, own)
    }


def _refuse_mixed(acting: Mapping[str, Method], usual: Method, fields: set[str]) -> None:
    for site, method in acting.items():
        for field in sorted(fields):
            if getattr(method, field) != getattr(usual, field):
                raise InputError(
                    f"HF PEFT's format holds one {field} for all sites; {site!r} has another"
                )


def _target_modules(model: nn.Module, acting: Mapping[str, Method]) -> list[str] | str:
    """Full names; as one regular expression where a name is also the end of another module's."""
    names = list(acting)
    endings = tuple(f".{name}" for name in names)
    if any(name.endswith(endings) and name not in acting for name, _ in model.named_modules()):
        return "|".join(re.escape(name) for name in names)
    return names


def _task_type(model: nn.Module, whole: list[str]) -> str | None:
    """HF PEFT expects a saved head for the classification types: claim them only where there is
    one.
    """
    for ending, task in _TASKS.items():
        if type(model).__name__.endswith(ending):
            return task if whole or task in {"CAUSAL_LM", "SEQ_2_SEQ_LM"} else None
    return None


def _tops(model: nn.Module, whole: list[str]) -> list[str]:
    """The fewest modules that contain just the modules trained whole."""
    holding = {name for name, m in model.named_modules() if dict(m.named_parameters(recurse=False))}
    holding = {name for name in holding if ".deltas." not in f".{name}."}
    tops: list[str] = []
    for site in whole:
        top = site
        while parent := top.rpartition(".")[0]:
            if not all(name in whole for name in holding if name.startswith(f"{parent}.")):
                break
            top = parent
        if top not in tops:
            tops.append(top)
    return tops
