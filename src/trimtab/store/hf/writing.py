"""From an adapter to the files."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Names, Prefix, Prompt
from trimtab.core.site import Geometry
from trimtab.match import sites
from trimtab.methods.whole import Whole
from trimtab.store import native
from trimtab.store.files import write_json, write_tensors
from trimtab.store.hf import prompts, pruned
from trimtab.store.hf.fields import BIASES, CONFIG, ROWS, TOKENS
from trimtab.store.hf.reading import PREFIX, REMEMBERED, ROOT, TENSORS, TOKEN_LEAF
from trimtab.store.hf.targets import modules, tied

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
    members = [delta.alike() for delta in adapter.members]
    if members != adapter.members:
        entries = tuple((delta.site.name, delta.method) for delta in members)
        adapter = dataclasses.replace(adapter, entries=entries, members=members)
    beside = {Whole.name, BIASES}
    acting = {site: method for site, method in adapter.entries if method.name not in beside}
    kinds = {method.name for method in acting.values()}
    if len(kinds) > 1:  # whose configuration may name tokens
        acting = {site: method for site, method in acting.items() if method.name != ROWS}
        tokens = kinds & {ROWS}
        kinds -= tokens if all(one.hf and one.hf.tokens for one in acting.values()) else set()
    if len(kinds) != 1 or (names := next(iter(acting.values())).hf) is None:
        every = {method.name for _, method in adapter.entries} - {Whole.name}
        raise InputError(
            f"adapter {adapter.name!r} ({', '.join(sorted(every)) or 'whole modules'}) cannot be "
            "written in HF PEFT's format, which has no such method, or holds one alone; use "
            "format='trimtab'"
        )
    _refuse_untied(model, adapter)
    if isinstance(next(iter(acting.values())), Prompt | Prefix):
        tensors, config = _prompts(model, adapter, acting, names)
    else:
        config = _config(model, adapter, acting, names)
        tensors = _tensors(adapter, acting, names)
    remembered = json.dumps({"name": adapter.name, "base": native.base(model, adapter)})
    write_tensors(folder / TENSORS, tensors, {REMEMBERED: remembered})
    write_json(folder / CONFIG, dict(sorted(config.items())))


def _refuse_untied(model: nn.Module, adapter: Adapter) -> None:
    """There, tokens of an embedding act at all that is tied to it."""
    untied = [site for site, m in adapter.entries if m.name == ROWS and not m.arguments()["tied"]]
    known = modules(sites(model)) if untied else []
    for site in known:
        if site.name in untied and len(every := tied(site, known)) > 1:
            raise InputError(
                f"HF PEFT's tokens of {site.name!r} act at all that is tied to it: attach "
                f"Tokens(tied=True) to {[one.name for one in every]}, or use format='trimtab'"
            )


def _prompts(
    model: nn.Module, adapter: Adapter, acting: Mapping[str, Method], names: Names
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if any(method.name == BIASES for _, method in adapter.entries):
        raise InputError(f"HF PEFT's {names.peft_type} files hold no biases; use format='trimtab'")
    task = _task_type(model, ["."])
    tensors, sizes = prompts.write(model, adapter, names, task)
    method = next(iter(acting.values()))
    return tensors, {
        **_about(model, names, task),
        **sizes,
        **_plain(method, names),
    }


def _about(model: nn.Module, names: Names, task: str | None) -> dict[str, Any]:
    return {
        "peft_type": names.peft_type,
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "task_type": task,
        "inference_mode": True,
    }


def _plain(method: Method, names: Names) -> dict[str, Any]:
    """A method's hyper-parameters under their names there."""
    return {
        **{theirs: getattr(method, own) for own, theirs in names.fields.items()},
        **(names.more.write(method) if names.more else {}),
        **names.flags,
    }


def _tensors(adapter: Adapter, acting: Mapping[str, Method], names: Names) -> dict[str, Tensor]:
    tensors = {}
    for site, delta in adapter.deltas():
        if delta.method.name == BIASES:
            bias = adapter.hosts[site].base.bias.detach()
            where = f"{site}.base_layer" if site in acting else site
            tensors[f"{PREFIX}{where}.bias"] = (bias.float() + delta.get_parameter("c")).detach()
            continue
        for own, tensor in delta.tensors().items():
            if delta.method.name == Whole.name:
                tensors[f"{PREFIX}{site}.{own}"] = tensor
                continue
            if site not in acting:
                tensors[f"{PREFIX}{site}.{TOKEN_LEAF}"] = tensor
                continue
            if own in names.state or (names.masked and own == "mask"):
                continue
            geometry = adapter.hosts[site].geometry
            theirs = names.tensors_at(geometry.kind).get(own)
            at = delta.site
            part = at.rows is not None or at.parameter is not None
            stored = geometry.kind == "linear" and geometry.transposed and not names.transposed
            if theirs is None or geometry.groups > 1 or part or stored:
                raise InputError(
                    f"{site!r} ({geometry.kind}) cannot be written in HF PEFT's format, which "
                    f"holds no {delta.method.name} there; use format='trimtab'"
                )
            if names.masked:
                tensor = pruned.left(names, own, tensor, delta.tensors()["mask"])
            tensors[f"{PREFIX}{site}.{theirs}"] = _shaped(names, geometry, own, tensor)
    for shared in adapter.shared.values():
        for own, theirs in names.common.items():
            tensors[f"{ROOT}{theirs}"] = shared.tensors()[own]
    for site, delta in adapter.deltas():
        if delta.method.name == ROWS and delta.shared is not None:
            embeds = adapter.hosts[site].geometry.kind == "embedding"
            leaf = TOKEN_LEAF if site not in acting else TOKEN_LEAF.rpartition(".")[2]
            if embeds or site in acting:
                tensors[f"{PREFIX}{site}.{leaf}"] = delta.shared.tensors()["t"].clone()
    return tensors


def _shaped(names: Names, geometry: Geometry, own: str, tensor: Tensor) -> Tensor:
    """The shape that a tensor has there."""
    if own in names.columns:
        return tensor[:, None]
    if geometry.kind != "conv" or names.patches is None:
        return tensor
    ones = (1,) * (len(geometry.shape) - 2)
    if own in names.channels:
        return tensor.reshape(1, -1, *ones)
    shape = geometry.shape[1:] if own == names.patches else (tensor.shape[1], *ones)
    return tensor.reshape(tensor.shape[0], *shape)


def _config(
    model: nn.Module, adapter: Adapter, acting: Mapping[str, Method], names: Names
) -> dict[str, Any]:
    whole = [site for site, method in adapter.entries if method.name == Whole.name]
    usual = Counter(acting.values()).most_common(1)[0][0]
    config: dict[str, Any] = {
        **_about(model, names, _task_type(model, whole)),
        "target_modules": _target_modules(model, acting),
        **({"modules_to_save": _tops(model, whole)} if whole else {}),
        **_plain(usual, names),
        **_biases(adapter, acting, names),
        **_tokens(adapter, acting),
    }
    if usual.name == ROWS and config["token_indices"] is None:  # every row, which there is a list
        embedding = next(adapter.hosts[site].geometry for site in acting)
        config["token_indices"] = list(range(embedding.in_features))
    if names.common:
        config["save_projection"] = True
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
    for own in names.patterns:
        config[f"{own}_pattern"] = _differing(acting, usual, own)
    if names.masked:
        masks = {
            s: d.tensors()["mask"]
            for s, d in adapter.deltas()
            if s in acting and "mask" in d.tensors()
        }
        config["rank_pattern"] = pruned.pattern(masks)
    _refuse_mixed(acting, usual, names)
    return config


def _biases(adapter: Adapter, acting: Mapping[str, Method], names: Names) -> dict[str, str]:
    """Which biases train: there it is none, those of the targets, or all."""
    shifted = {site for site, method in adapter.entries if method.name == BIASES}
    if not shifted:
        return {}
    if names.biases is None:
        raise InputError(f"HF PEFT's {names.peft_type} files hold no biases; use format='trimtab'")
    for site in sorted(shifted):
        if getattr(adapter.hosts[site].base, "bias", None) is None:
            raise InputError(
                f"{site!r} has no bias of its own: HF PEFT's files hold none there; use "
                "format='trimtab'"
            )
    return {"bias": names.biases if shifted <= set(acting) else "all"}


def _tokens(adapter: Adapter, acting: Mapping[str, Method]) -> dict[str, Any]:
    """The rows of embeddings that train beside the method."""
    found = {}
    for site, delta in adapter.deltas():
        if delta.method.name == ROWS and site not in acting:
            geometry = adapter.hosts[site].geometry
            rows = delta.method.rows  # type: ignore[attr-defined]
            if geometry.kind == "embedding":
                found[site] = list(range(geometry.in_features) if rows is None else rows)
    return {TOKENS: found} if found else {}


def _differing(acting: Mapping[str, Method], usual: Method, own: str) -> dict[str, Any]:
    return {
        re.escape(site): getattr(method, own)
        for site, method in acting.items()
        if getattr(method, own) != getattr(usual, own)
    }


def _refuse_mixed(acting: Mapping[str, Method], usual: Method, names: Names) -> None:
    """Hyper-parameters that there is one of for all sites."""
    mine = usual.arguments()
    free = {*names.patterns, *(() if names.oriented is None else ("scales",))}
    for site, method in acting.items():
        for field, value in method.arguments().items():
            if field not in free and value != mine[field]:
                raise InputError(
                    f"HF PEFT's format holds one {field} for all sites; {site!r} has another"
                )


def _target_modules(model: nn.Module, acting: Mapping[str, Method]) -> list[str] | str:
    """Full names; as one regular expression where a name is also the end of another module's."""
    names = [site for site, method in acting.items() if not getattr(method, "tied", False)]
    if not names:  # what is tied to an embedding follows it there
        embedding = model.get_input_embeddings()
        names = [name for name, module in model.named_modules() if module is embedding]
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
