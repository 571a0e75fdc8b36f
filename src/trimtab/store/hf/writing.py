"""From an adapter to the files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Names
from trimtab.methods.bitfit import BitFit
from trimtab.methods.whole import Whole
from trimtab.store import native
from trimtab.store.files import write_json, write_tensors
from trimtab.store.hf.fields import CONFIG
from trimtab.store.hf.reading import PREFIX, REMEMBERED, TENSORS

_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def write(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """The adapter in HF PEFT's format, or an `InputError` that says what that format cannot
    hold.
    """
    beside = {Whole.name, BitFit.name}
    acting = {site: method for site, method in adapter.entries if method.name not in beside}
    kinds = {method.name for method in acting.values()}
    if len(kinds) != 1 or (names := next(iter(acting.values())).hf) is None:
        every = {method.name for _, method in adapter.entries} - {Whole.name}
        raise InputError(
            f"adapter {adapter.name!r} ({', '.join(sorted(every)) or 'whole modules'}) cannot be "
            "written in HF PEFT's format, which holds one method that it knows; use "
            "format='trimtab'"
        )
    config = _config(model, adapter, acting, names)
    remembered = json.dumps({"name": adapter.name, "base": native.base(model, adapter)})
    write_tensors(folder / TENSORS, _tensors(adapter, acting, names), {REMEMBERED: remembered})
    write_json(folder / CONFIG, dict(sorted(config.items())))


def _tensors(adapter: Adapter, acting: Mapping[str, Method], names: Names) -> dict[str, Tensor]:
    tensors = {}
    for site, delta in adapter.deltas():
        if delta.method.name == BitFit.name:
            bias = adapter.hosts[site].base.bias.detach()
            where = f"{site}.base_layer" if site in acting else site
            tensors[f"{PREFIX}{where}.bias"] = (bias.float() + delta.get_parameter("c")).detach()
            continue
        for own, tensor in delta.tensors().items():
            if delta.method.name == Whole.name:
                tensors[f"{PREFIX}{site}.{own}"] = tensor
                continue
            geometry = adapter.hosts[site].geometry
            theirs = names.tensors_at(geometry.kind).get(own)
            if theirs is None or geometry.groups > 1 or site.endswith("]"):
                raise InputError(
                    f"{site!r} ({geometry.kind}) cannot be written in HF PEFT's format, which "
                    f"holds no {delta.method.name} there; use format='trimtab'"
                )
            if geometry.kind == "conv":
                ones = (1,) * (len(geometry.shape) - 2)
                shape = geometry.shape[1:] if own == names.patches else (tensor.shape[1], *ones)
                tensor = tensor.reshape(tensor.shape[0], *shape)
            tensors[f"{PREFIX}{site}.{theirs}"] = tensor
    return tensors


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
        **{theirs: getattr(usual, own) for own, theirs in names.fields.items()},
        **_biases(adapter, acting, names),
    }
    if names.transposed:
        geometries = [adapter.hosts[site].geometry for site in acting]
        config["fan_in_fan_out"] = all(geometry.transposed for geometry in geometries)
    if names.oriented:
        scaled = {
            site
            for site, d in adapter.deltas()
            if d.method.name == usual.name and d.tensors()[names.oriented].shape[0] == 1
        }
        config["feedforward_modules"] = sorted(scaled)
    for own, pattern in (("rank", "rank_pattern"), ("alpha", "alpha_pattern")):
        if own in names.fields:
            config[pattern] = _differing(acting, usual, own)
    _refuse_mixed(acting, usual, set(names.fields) - {"rank", "alpha"})
    return config


def _biases(adapter: Adapter, acting: Mapping[str, Method], names: Names) -> dict[str, str]:
    """Which biases train: there it is none, those of the targets, or all."""
    shifted = {site for site, method in adapter.entries if method.name == BitFit.name}
    if not shifted:
        return {}
    if names.shift is None:
        raise InputError(f"HF PEFT's {names.peft_type} files hold no biases; use format='trimtab'")
    for site in sorted(shifted):
        if getattr(adapter.hosts[site].base, "bias", None) is None:
            raise InputError(
                f"{site!r} has no bias of its own: HF PEFT's files hold none there; use "
                "format='trimtab'"
            )
    return {"bias": "lora_only" if shifted <= set(acting) else "all"}


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
    """HF PEFT expects a saved head for the classification types, and ids of tokens for those of
    language: claim them only where there are such.
    """
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return None
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
