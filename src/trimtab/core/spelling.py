"""What a hyper-parameter that a method does not have is called here, or where else it belongs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import nearest

if TYPE_CHECKING:
    from trimtab.core.method import Method

OTHERS = {
    **dict.fromkeys(("bottleneck_size", "bottleneck_dim", "adapter_size", "adapter_dim"), "width"),
    "reduction_factor": "reduction",
    **dict.fromkeys(("non_linearity", "nonlinearity", "act_fn"), "activation"),
    "scaling": "scale",
    **dict.fromkeys(("prefix_length", "prompt_length", "num_tokens", "pre_seq_len"), "length"),
    **dict.fromkeys(("low_rank_dimension", "lora_rank"), "rank"),
    **dict.fromkeys(("p", "dropout_rate", "attn_dropout"), "dropout"),
    "loraplus_lr_ratio": "lr_ratio",
}
"""Names in papers and libraries beside those that methods declare of HF PEFT's files."""

_WHERE = (
    "where it acts is told to trimtab.attach(model, method, to=…), on the command line --target"
)
_WHOLE = (
    "modules to train whole are told to trimtab.attach(…, train=…), on the command line --train"
)
_PLAN = "other values at some sites are a plan: trimtab.attach(model, {target: method, …})"
_NO_TASK = "methods know of no tasks, and an adapter trains while it is active"
ELSEWHERE = {
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_to_transform"), _WHERE),
    **dict.fromkeys(("targets", "target", "to"), _WHERE),
    **dict.fromkeys(("modules_to_save", "train"), _WHOLE),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), _PLAN),
    **dict.fromkeys(("task_type", "inference_mode"), _NO_TASK),
    "use_dora": "DoRA is a method of its own, trimtab.DoRA",
    "bias": "biases train by trimtab.BitFit: several methods are a list, [trimtab.LoRA(), …]",
    "init_lora_weights": "other starts are functions of trimtab.init",
}
"""What others give to a method and Trimtab to a verb, or to another method."""


def unknown(cls: type[Method], name: str, among: Iterable[type[Method]], value: Any = ...) -> str:
    """What to say of it; `among` are the methods whose names in files count as known."""
    own = [field.name for field in dataclasses.fields(cls)]
    said = f"{cls.name} has no hyper-parameter {name!r}"
    spelled = next((one for one in _spellings(name, [cls, *among]) if one in own), None)
    if spelled is not None:
        given = "…" if value is ... else f"{value!r:.40}"
        return f"{said}; here it is {spelled!r}: {cls.__name__}({spelled}={given})"
    if name in ELSEWHERE:
        return f"{said}; {ELSEWHERE[name]}"
    return f"{said}; {nearest(name, own) if own else 'it has none'}"


def _spellings(name: str, methods: Iterable[type[Method]]) -> Iterator[str]:
    """What is called so in files: in the first method's, then in any other's; and elsewhere."""
    for one in methods:
        fields = one.hf.fields if one.hf is not None else {}
        yield from (own for own, there in fields.items() if there == name)
    if name in OTHERS:
        yield OTHERS[name]
