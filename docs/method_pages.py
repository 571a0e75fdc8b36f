"""One page a method: its paper and equation, when to use it, its options, and a program that runs.

All of it follows from the method's file and from what `trimtab methods` finds by trying.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from trimtab.core.method import Combine, Composite, Method, Selection
from trimtab.core.options import options
from trimtab.core.registry import lookup
from trimtab.core.training import scheduled

USE = "Use it "
CAN = {
    "mergeable": "merged into the base's weights",
    "stackable": "stacked",
    "routable": "routed by example",
    "mixable": "mixed",
}

NEEDS = {
    "over": "other adapters on the model, named by `over`",
    "task_ids": "the task of each example, as `task_ids` of the call (see [loops](../loops.md))",
}
OF_ATTACH = (
    "The rest is said to `attach`: where it acts (`to=`, see [sites](../sites.md)), what trains "
    "whole beside it (`train=`), other options at some sites (a plan, see "
    "[compositions](../compositions.md))."
)
MODEL = """\
import copy

import torch
from transformers import BertConfig, BertForSequenceClassification

import trimtab

sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
config = BertConfig(**sizes, num_attention_heads=4, vocab_size=100, num_labels=3)
pretrained = BertForSequenceClassification(config).eval()  # as from_pretrained gives it


def fresh():
    return copy.deepcopy(pretrained)


model = fresh()
batch = {"input_ids": torch.randint(3, 100, (2, 7)), "labels": torch.tensor([0, 2])}
"""


def page(name: str, row: dict[str, Any], measured: dict[str, Any] | None) -> str:
    cls = lookup(name)
    law, use = words(cls)
    lines = [f"# {name}", "", f"`trimtab.{cls.__name__}`: {_first(cls)}", ""]
    lines += ["```", law, "```", "", use, "", "## Options", "", *_options(cls)]
    lines += ["", "## What it does", "", *_facts(cls, row, measured), "", "## Example", ""]
    lines += [
        "The model is a tiny BERT with random weights, so that the program runs as it stands, in",
        "seconds; one of yours comes from `from_pretrained`. `fresh()` gives the same base again.",
        "",
        "```python",
        MODEL,
        example(cls(), row),
        "```",
    ]
    return "\n".join(lines) + "\n"


def words(cls: type[Method]) -> tuple[str, str]:
    """The paper and the equation of the method's file, and when to use it."""
    told = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    law, mark, use = told.rpartition(f"\n\n{USE}")
    if not mark:
        raise SystemExit(f"{cls.__module__}: its docstring must end in a paragraph '{USE}…'")
    return law, " ".join(f"{USE}{use}".split())


def _first(cls: type[Method]) -> str:
    told = inspect.cleandoc(cls.__doc__ or "")
    return " ".join(told.split())


def _options(cls: type[Method]) -> list[str]:
    found = options(cls)
    rest = [] if issubclass(cls, Selection | Composite) else ["", OF_ATTACH]
    if not found:
        return ["None of its own.", *rest]
    rows = [
        f"| `{one.name}` | `{_cell(one.type)}` | `{one.default!r}` | {_cell(one.meaning)} |"
        for one in found
    ]
    table = ["| option | type | default | meaning |", "|---|---|---|---|", *rows]
    return [*table, *rest]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")  # a bar would end the cell


def _where(cls: type[Method], row: dict[str, Any]) -> str:
    if issubclass(cls, Selection):
        return "the base's own parameters, in place"
    at = f"at {', '.join(row['targets'])}"
    if issubclass(cls, Combine):
        at = "where those adapters act"
    return f"{', '.join(row['layers'])}; by default {at}"


def _facts(cls: type[Method], row: dict[str, Any], measured: dict[str, Any] | None) -> list[str]:
    can = [words for key, words in CAN.items() if row[key]]
    lines = [
        f"- Acts on: {_where(cls, row)}.",
        f"- Can be {', '.join(can) or 'neither merged nor combined'}.",
        f"- Learning rate: {row['learning_rate']:g}.",
    ]
    if row["parameters"] is not None:
        lines.append(f"- Trains {row['parameters']:,} parameters ({row['parameters_at']}).")
    if measured and measured["forward"]:
        lines.append(
            f"- Takes {measured['forward']:.2f} of the base's time forward, unmerged, and a step "
            f"{measured['step']:.2f} of full fine-tuning's (see [methods](../methods.md))."
        )
    if row["quantised"]:
        lines.append(f"- Stands over quantised bases: {', '.join(row['quantised'])}.")
    if row["needs"]:
        lines.append(f"- Needs {' and '.join(NEEDS.get(one, one) for one in row['needs'])}.")
    files = f"`{row['hf_peft']}`, both ways" if row["hf_peft"] else "no such method there"
    return [*lines, f"- HF PEFT's files: {files}."]


def example(method: Method, row: dict[str, Any]) -> str:
    """A program from attaching to the restored adapter."""
    lr = f"{row['learning_rate']:g}"
    lines = []
    if method.base:
        lines += [f'trimtab.quantise(model, "{method.base}")']
    lines += _attached(method)
    if method.unready():
        lines += ["trimtab.init.fisher(model, [batch])  # the places of its values, from data"]
    lines += ["", f"optimizer = torch.optim.AdamW(trimtab.parameters(model), lr={lr})"]
    lines += [
        "model.train()",
        "for step in range(1, 4):",
        *_indented(_loss(method)),
        "    loss.backward()",
    ]
    if scheduled(method) and not method.unready():
        lines += ["    trimtab.after_backward(model, step, 3)"]
    lines += ["    optimizer.step()", "    optimizer.zero_grad()", ""]
    named = ", name=both" if isinstance(method, Combine) else ""
    lines += [f'trimtab.save(model, "adapter"{named})', "restored = fresh()"]
    if method.base:
        lines += [f'trimtab.quantise(restored, "{method.base}")']
    lines += ['trimtab.load(restored, "adapter")']
    if row["mergeable"]:
        lines += [
            "trimtab.merge(restored)  # plain weights: nothing is left to compute beside them"
        ]
    return "\n".join(lines)


def _attached(method: Method) -> list[str]:
    cls = f"trimtab.{type(method).__name__}"
    if isinstance(method, Combine):
        return [
            'for name in ("a", "b"):  # trained before, each on a task of its own',
            "    trimtab.attach(model, trimtab.LoRA(), name=name)",
            "trimtab.activate(model, None)",
            f'over = {cls}(over=("a", "b"))',
            'trimtab.attach(model, over, name="c", train=["classifier"])',
            'both = trimtab.Fuse("a", "b", by="c")',
            "trimtab.activate(model, both)",
            'print(trimtab.summary(model, name="c"))',
        ]
    where = ', train=["classifier"]'
    if isinstance(method, Selection):
        where = ""
    elif method.name == "whole":
        where = ', to=["classifier"]'
    return [f"trimtab.attach(model, {cls}(){where})", "print(trimtab.summary(model))"]


def _loss(method: Method) -> list[str]:
    if "task_ids" not in method.needs:
        return ["loss = model(**batch).loss"]
    return [
        'tasks = torch.zeros(len(batch["labels"]), dtype=torch.long)',
        "with trimtab.given(model, task_ids=tasks):",
        "    loss = model(**batch).loss",
    ]


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]
