"""What a folder means here: sites, methods and tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Method
from trimtab.core.registry import build
from trimtab.core.site import Site
from trimtab.store.adapterhub.reading import CONFIG, Bottleneck, Saved

_ACTIVATIONS = {
    **{name: name for name in ("relu", "tanh", "gelu", "silu")},
    "swish": "silu",
    "leakyrelu": "leaky_relu",
    "linear": "identity",
}
_NAMES = {"D": "D", "D_bias": "d", "U": "U", "U_bias": "u"}
_CROSS = re.compile(r"EncDecAttention|encoder_attn|crossattention")

_BERTS = ("bert", "roberta", "xlm-roberta", "electra", "bert-generation", "deberta", "deberta-v2")
_NORMS: dict[str, dict[str, str]] = {
    **{
        one: {"attention-output": "attention.output.LayerNorm", "mlp-output": "output.LayerNorm"}
        for one in _BERTS
    },
    "albert": {
        "attention-output": "attention.LayerNorm",
        "mlp-output": "full_layer_layer_norm",
    },
    "distilbert": {"attention-output": "sa_layer_norm", "mlp-output": "output_layer_norm"},
    "bart": {"attention-output": "self_attn_layer_norm", "mlp-output": "final_layer_norm"},
    **{one: {} for one in ("gpt2", "gptj", "t5", "mt5", "mbart", "llama", "mistral")},
}
"""By type of model, the norm that the library hands to a bottleneck: it takes the sum of a sublayer
and its residual, and is named from the block. None where norms precede their
sublayers."""


def interpret(
    saved: Saved, known: Mapping[str, Site], model_type: str | None = None
) -> tuple[list[tuple[Site, Method]], dict[str, Tensor]]:
    """(site, method) pairs and the tensors under Trimtab's names; an `InputError` says which field
    has no equal here. `model_type` is what the model calls itself, if it does.
    """
    fields, kind = saved.fields, model_type or saved.model_type
    method = _method(fields)
    pairs: list[tuple[Site, Method]] = []
    tensors = {}
    for one in saved.bottlenecks:
        if kind == saved.model_type:
            one = dataclasses.replace(one, block=_block(one.block, known))
        site = _output(one, known, saved.name)
        if fields["is_parallel"]:
            _refuse_unnormed(kind)
        elif fields["original_ln_before"]:
            site = _summed(one, kind, known)
        elif kind == "albert" and one.role == "attention-output":
            raise InputError(
                f"{CONFIG}: mh_adapter in ALBERT has no equal here without original_ln_before: the "
                "library's bottleneck reads the residual there, and not what attention gives"
            )
        if reason := method.accepts(site):
            raise AdapterMismatch(f"{method.name} cannot act at {site.name!r}: {reason}")
        pairs.append((site, dataclasses.replace(method, width=len(one.tensors["D"]))))  # type: ignore[call-arg]
        for theirs, own in _NAMES.items():
            tensors[f"{site.name}.{method.name}.{own}"] = one.tensors[theirs]
    return pairs, tensors


def _block(name: str, known: Mapping[str, Site]) -> str:
    """The block in this model: names begin with that of the body, unless the model was the body
    alone when it was saved, or is it now."""
    if name in known:
        return name
    found = {path for path in known if path.endswith(f".{name}") or name.endswith(f".{path}")}
    found = {path for path in found if re.search(r"\.\d+", path)}
    return found.pop() if len(found) == 1 else name


def _output(one: Bottleneck, known: Mapping[str, Site], adapter: str) -> Site:
    """The last map of the sublayer that a bottleneck stands after."""
    inside = {s.name: s for s in known.values() if s.name.startswith(f"{one.block}.")}
    found = [
        site
        for name, site in inside.items()
        if one.role in site.roles and not _CROSS.search(name.removeprefix(one.block))
    ]
    if len(found) != 1:
        raise AdapterMismatch(
            f"adapter {adapter!r}: {one.block!r} of this model has {len(found)} places "
            f"of the role {one.role!r}, and must have one"
        )
    return found[0]


def _norms(kind: str | None, field: str) -> Mapping[str, str]:
    if kind not in _NORMS:
        raise InputError(
            f"{CONFIG}: what {field} reads depends on where a model has its norms, which is not "
            f"known here of the type {kind!r}; it is known of {', '.join(_NORMS)}"
        )
    return _NORMS[kind]


def _refuse_unnormed(kind: str | None) -> None:
    if not _norms(kind, "is_parallel"):
        raise InputError(
            f"{CONFIG}: is_parallel has no equal here in a model whose norms precede their "
            f"sublayers ({kind}): the library's bottleneck reads what such a norm is given"
        )


def _summed(one: Bottleneck, kind: str | None, known: Mapping[str, Site]) -> Site:
    """Where a bottleneck can read the sum of a sublayer and its residual: the norm that takes it
    or, where none does, the block that ends with it."""
    norms = _norms(kind, "original_ln_before")
    if not norms and one.role != "mlp-output":
        raise InputError(
            f"{CONFIG}: original_ln_before beside mh_adapter has no equal here in a model whose "
            f"norms precede their sublayers ({kind}): no module gives the sum that it would read"
        )
    name = f"{one.block}.{norms[one.role]}" if norms else one.block
    if name not in known:
        raise AdapterMismatch(f"a model of type {kind!r} has {name!r}, and this one has not")
    return known[name]


def _method(fields: Mapping[str, Any]) -> Method:
    """The method that is this law: a bottleneck reads what its sublayer gives, or that and the
    residual, or in parallel the residual alone; it is added before the sublayer's norm.
    """
    parallel, summed = fields["is_parallel"], fields["original_ln_before"]
    residual = fields["residual_before_ln"]
    if fields["original_ln_after"] is not True:
        raise InputError(
            f"{CONFIG}: original_ln_after={fields['original_ln_after']!r}: a bottleneck that is "
            "added behind the norm has no equal here; original_ln_after must be True"
        )
    if parallel and (fields["mh_adapter"] or not fields["output_adapter"]):
        raise InputError(f"{CONFIG}: is_parallel beside an attention has no equal here")
    if not parallel and (residual == "post_add" or (summed and residual is not True)):
        raise InputError(
            f"{CONFIG}: residual_before_ln={residual!r} has no equal here: with it the sublayer's "
            "residual is added twice"
        )
    activation = fields["non_linearity"].lower()
    if activation not in _ACTIVATIONS:
        raise InputError(f"{CONFIG}: non_linearity is one of {sorted(_ACTIVATIONS)} here")
    sequential = "houlsby" if fields["mh_adapter"] and not summed else "pfeiffer"
    return build(
        "parallel" if parallel else sequential,
        {
            "activation": _ACTIVATIONS[activation],
            "scale": float(fields["scaling"]),
            "dropout": float(fields["dropout"]),
            "reduction": None,
        },
    )
