"""The configuration's fields: their form, which are understood, and which are off."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trimtab.core.errors import InputError
from trimtab.core.method import Method, Names, Prefix, Prompt
from trimtab.core.registry import methods
from trimtab.store.native import saved_method

CONFIG = "adapter_config.json"
TOKENS, PARAMETERS = "trainable_token_indices", "target_parameters"
BIASES, ROWS = "bitfit", "tokens"
"""What acts beside a method there: our names of it."""
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode"),
    *("megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "task_type"),
    "runtime_config",
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
}
_SITES = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "feedforward_modules", TOKENS, PARAMETERS),
}
PATTERNS = {"rank_pattern", "alpha_pattern"}
START = "init_lora_weights"
_CHANGING = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Starts that take from the base what they put into the adapter."""
SIZES = {"token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
"""What a prompt's or prefix's configuration says of the model."""
STARTS: dict[str, tuple[Any, ...]] = {
    START: (True, "gaussian", "orthogonal", "eva", "mica"),
    "init_ia3_weights": (True,),
    "init_weights": (True, "lycoris", "gaussian"),
}
"""How the weights began, which does not matter once they are saved. The first is Trimtab's own."""


def chosen(config: Mapping[str, Any]) -> tuple[type[Method], Names]:
    """The method that a configuration means, after its fields have been checked."""
    wanted = config.get("peft_type")
    readable = [(cls, cls.hf) for cls in methods().values() if cls.hf is not None]
    fitting = [
        (cls, names)
        for cls, names in readable
        if names.peft_type == wanted
        and all(config.get(field) == value for field, value in names.flags.items())
    ]
    if not fitting:
        known = sorted({names.peft_type for _, names in readable})
        raise InputError(f"{CONFIG}: peft_type {wanted!r} cannot be read; known: {known}")
    cls, names = max(fitting, key=lambda pair: len(pair[1].flags))
    _check_forms(config, names)
    _refuse_unknown(config, cls, names)
    return cls, names


def _check_forms(config: Mapping[str, Any], names: Names) -> None:
    """The fields that say where the adapter acts: their form, and that patterns are patterns."""
    for field in sorted(_SITES | PATTERNS | _patterned(names)):
        value = config.get(field)
        form, fits = _form(field)
        if value is not None and not fits(value):
            raise InputError(f"{CONFIG}: {field} must be {form}, not {value!r:.60}")
    for field, pattern in _patterns(config, names):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(f"{CONFIG}: {field} is no regular expression: {error}") from None


def _form(field: str) -> tuple[str, Callable[[Any], bool]]:
    if field == TOKENS:
        return (
            "a list of ids, or an object of such lists",
            lambda value: (
                _are(int, value)
                or (isinstance(value, dict) and all(_are(int, one) for one in value.values()))
            ),
        )
    if field not in _SITES:
        return "an object", lambda value: isinstance(value, dict)
    if field == "layers_to_transform":
        return (
            "a number or a list of numbers",
            lambda value: _are(int, value) or isinstance(value, int),
        )
    if field in {"modules_to_save", PARAMETERS}:
        return "a list of names", lambda value: _are(str, value)
    return "a name or a list of names", lambda value: _are(str, value) or isinstance(value, str)


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _patterned(names: Names) -> set[str]:
    return {names.pattern(own) for own in names.patterns}


def _patterns(config: Mapping[str, Any], names: Names) -> Iterator[tuple[str, str]]:
    """(field, regular expression) for all that are used, as they are used."""
    for field in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(config.get(field), str):
            yield field, config[field]
    for field in sorted(PATTERNS | _patterned(names)):
        yield from ((field, ending(one)) for one in config.get(field) or ())
    yield from (("layers_pattern", pattern) for pattern in layer_patterns(config))


def _by_site(config: Mapping[str, Any]) -> list[str]:
    """The fields by which a hyper-parameter differs by site, such as `rank_pattern`."""
    return sorted(field for field in config if field.endswith("_pattern") and field not in _SITES)


def ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def layer_patterns(config: Mapping[str, Any]) -> list[str]:
    """What finds a layer's number in a module's name: its first number, as HF PEFT reads it."""
    patterns = config.get("layers_pattern")
    if not patterns:
        return [r".*?\.[^.]*\.(?P<index>\d+)\."]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return [rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\." for pattern in patterns]


def _refuse_unknown(config: Mapping[str, Any], cls: type[Method], names: Names) -> None:
    understood = _HARMLESS | _understood(names)
    if issubclass(cls, Prompt | Prefix):
        understood |= SIZES
    for field, value in config.items():
        at_start = any(value == one for one in STARTS.get(field, ()))
        if field in understood or at_start or is_off(value):
            continue
        if field == START and value in names.starts:
            continue
        if field == "bias" and names.biases and value in ("all", names.biases):
            continue
        if field == "lora_bias" and value is True and names.shift is not None:
            continue
        if field == PARAMETERS:
            raise InputError(
                f"{CONFIG}: {field}={value!r}: HF PEFT adapts tensors by their name with plain "
                f"LoRA alone, and not with {cls.name}; name modules in target_modules"
            )
        if field in STARTS and str(value).startswith(_CHANGING):
            raise InputError(
                f"{CONFIG}: {field}={value!r} starts from another base than the model's own, which "
                "the file does not hold and the model's own weights do not tell. Convert the "
                "adapter to plain LoRA where it was made (save_pretrained with "
                "path_initial_model_for_weight_conversion); or load the changed base, if it was "
                f"saved, and set {field} to true"
            )
        raise InputError(
            f"{CONFIG}: {field}={value!r} has no equal in {cls.name}; such a file cannot be used "
            "here without changing what the adapter does"
        )


def _understood(names: Names) -> set[str]:
    known = {
        "feedforward_modules": names.oriented is not None,
        "rank_pattern": bool(names.masked),
        TOKENS: names.tokens,
        PARAMETERS: names.parameters,
    }
    sites = _SITES - known.keys() | {field for field, holds in known.items() if holds}
    more = names.more.names if names.more else ()
    saved = {names.saved} if names.saved else set()
    return {*sites, *_patterned(names), *names.fields.values(), *names.flags, *more, *saved}


def is_off(value: Any) -> bool:
    return value in (None, False, 0, "", "none") or value == [] or value == {}


def arguments(
    config: Mapping[str, Any], cls: type[Method], names: Names, path: str, **at_site: Any
) -> Method:
    """The method at one site: patterns override the common values."""
    values = {own: config[theirs] for own, theirs in names.fields.items() if theirs in config}
    if names.more:
        try:
            values |= names.more.read(config)
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError):
            raise InputError(
                f"{CONFIG}: of the fields {', '.join(names.more.names)} one is no number"
            ) from None
    for own in names.patterns:
        for one, value in (config.get(names.pattern(own)) or {}).items():
            if re.match(ending(one), path):
                values[own] = value
                break
    return saved_method(cls.name, {**values, **at_site})
