"""The configuration of HF PEFT's that an adapter is written with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Names
from trimtab.methods.whole import Whole
from trimtab.store.hf import experts, pruned
from trimtab.store.hf.fields import BIASES, PARAMETERS, ROWS, TOKENS

_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def config_of(
    model: nn.Module,
    adapter: Adapter,
    acting: Mapping[str, Method],
    names: Names,
    by_name: Mapping[str, str],
) -> dict[str, Any]:
    called = {site: method for site, method in acting.items() if site not in by_name}
    whole = [site for site, method in adapter.entries if method.name == Whole.name]
    usual = Counter(acting.values()).most_common(1)[0][0]
    config: dict[str, Any] = {
        **about(model, names, task_type(model, whole)),
        "target_modules": _target_modules(model, called) if called or not by_name else [],
        **({PARAMETERS: sorted(by_name.values())} if by_name else {}),
        **({"modules_to_save": _tops(model, whole)} if whole else {}),
        **plain(usual, names),
        **_biases(adapter, acting, names),
        **_tokens(adapter, acting),
    }
    if usual.name == ROWS and config["token_indices"] is None:  # every row, which there is a list
        embedding = next(adapter.hosts[site].geometry for site in acting)
        config["token_indices"] = list(range(embedding.in_features))
    if names.saved:
        config[names.saved] = True
    if names.transposed:
        stored = {site: adapter.hosts[site].geometry for site in called}
        linear = [s for s, g in stored.items() if g.transposed and g.kind == "linear"]
        if by_name and linear:
            raise InputError(
                f"{linear[0]!r}, stored as (in, out), and {next(iter(by_name))!r}, named as a "
                "tensor, cannot stand in one configuration of HF PEFT's; use format='trimtab'"
            )
        config["fan_in_fan_out"] = not by_name and all(g.transposed for g in stored.values())
    if names.oriented:
        scaled = {
            site
            for site, d in adapter.deltas()
            if d.method.name == usual.name and d.tensors()[names.oriented].shape[0] == 1
        }
        config["feedforward_modules"] = sorted(scaled)
    if isinstance(config["target_modules"], str) and experts.former(model):
        raise InputError(
            "HF PEFT's format names the sites of this adapter by a pattern, and in a model of this "
            "type HF PEFT goes by the last parts of names alone; use format='trimtab'"
        )
    for own in names.patterns:
        config[names.pattern(own)] = _differing(acting, usual, own, by_name, names)
    if names.masked:
        masks = {
            s: d.tensors()["mask"]
            for s, d in adapter.deltas()
            if s in acting and "mask" in d.tensors()
        }
        config["rank_pattern"] = pruned.pattern(masks)
    _refuse_mixed(acting, usual, names)
    return config


def about(model: nn.Module, names: Names, task: str | None) -> dict[str, Any]:
    return {
        "peft_type": names.peft_type,
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "task_type": task,
        "inference_mode": True,
    }


def plain(method: Method, names: Names) -> dict[str, Any]:
    """A method's hyper-parameters under their names there."""
    return {
        **{theirs: getattr(method, own) for own, theirs in names.fields.items()},
        **(names.more.write(method) if names.more else {}),
        **names.flags,
    }


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


def _differing(
    acting: Mapping[str, Method],
    usual: Method,
    own: str,
    by_name: Mapping[str, str],
    names: Names,
) -> dict[str, Any]:
    return {
        site if names.exact_patterns else re.escape(by_name.get(site, site)): getattr(method, own)
        for site, method in acting.items()
        if getattr(method, own) != getattr(usual, own)
    }


def _refuse_mixed(acting: Mapping[str, Method], usual: Method, names: Names) -> None:
    """Hyper-parameters that there is one of for all sites; those that only training knows, such as
    LoRA+'s ratio, have no place there at all."""
    mine = usual.arguments()
    free = {*names.patterns, *(() if names.oriented is None else ("scales",))}
    for site, method in acting.items():
        for field, value in method.arguments().items():
            held = names.more is not None or field in names.fields
            if held and field not in free and value != mine[field]:
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


def task_type(model: nn.Module, whole: list[str]) -> str | None:
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
