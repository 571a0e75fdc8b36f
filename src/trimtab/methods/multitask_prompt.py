"""Multitask prompt tuning: Wang et al. 2023, arXiv:2303.02861.

    X' = [P ∘ (Uₖ Vₖᵀ); X],   P (n, d), Uₖ (n, r), Vₖ (d, r), k the example's task

All tasks share the prompt P, which each changes by a matrix of low rank (the paper: rank one). What
tasks have in common is learnt once; a new task starts at P and has n + d numbers of its own. Of the
first rank U and V start at one, of others V at zero: every task starts at P.

Use it where several tasks share a large model: one prompt for what they have in common, and a few
numbers for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.adapter import Adapter
from trimtab.core.call import Call
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Fields, Names, Param, Prompt, Values, option
from trimtab.core.site import Site
from trimtab.core.vocabulary import check_start, rows


@dataclass(frozen=True, kw_only=True)
class MultitaskPrompt(Prompt):
    """A prompt for several tasks, told apart by matrices of low rank. `start_from` takes over what
    other tasks have trained."""

    name = "multitask-prompt"
    paper = "arXiv:2303.02861"
    learning_rate = 3e-2
    needs: ClassVar[frozenset[str]] = frozenset({"task_ids"})
    hf: ClassVar[Names | None] = Names(
        peft_type="MULTITASK_PROMPT_TUNING",
        tensors={"P": "prompt_embeddings", "U": "prefix_task_cols", "V": "prefix_task_rows"},
        fields={"length": "num_virtual_tokens", "tasks": "num_tasks", "rank": "num_ranks"},
        patterns=(),
        more=Fields(
            (
                *("prompt_tuning_init", "prompt_tuning_init_text", "prompt_tuning_init_task"),
                *("prompt_tuning_init_state_dict_path", "tokenizer_name_or_path"),
                "tokenizer_kwargs",
            ),
            read=lambda config: {},
            write=lambda method: {"prompt_tuning_init": "RANDOM"},
        ),
    )

    length: int = option(20, "n, embeddings before the input")
    tasks: int = option(2, "how many tasks there are: `task_ids` run from 0 to one less")
    rank: int = option(1, "r of each task's matrix Uₖ Vₖᵀ")
    start: str | tuple[int, ...] = option(
        "vocabulary", 'P at the start, as of `prompt`: "vocabulary", "random" or ids of tokens'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("length", "tasks", "rank"):
            self.require(field, getattr(self, field) >= 1, "be at least 1")
        check_start(self.name, self.start)

    def init(self, site: Site) -> dict[str, Param]:
        P = rows(self.name, site, self.length, self.start)
        U = 0.02 * torch.randn(self.tasks, self.length, self.rank)
        V = torch.zeros(self.tasks, self.rank, P.shape[1])
        U[..., 0], V[:, 0] = 1.0, 1.0
        return {"P": Param(P), "U": Param(U, exact=True), "V": Param(V, exact=True)}

    def extend(self, p: Values, call: Call) -> Tensor:
        ids = call.tasks(self.tasks).to(p.U.device)
        return p.P * (p.U[ids] @ p.V[ids]).to(p.P.dtype)


@torch.no_grad()
def start_from(target: Adapter, source: Adapter, task: int | str = "mean") -> None:
    """Let a new adapter start where another has come to: at its P, and at the U and V of one of its
    tasks, at their "mean" over tasks, or, if `task` is "none", at its own.

    Raises:
        AdapterMismatch: one of the two is no multitask prompt, or their shapes differ.
        InputError: the source has no such task.
    """
    (to,), (of,) = _prompts(target), _prompts(source)
    shapes = [(tuple(one.P.shape), one.U.shape[2]) for one in (to, of)]
    if shapes[0] != shapes[1]:
        raise AdapterMismatch(
            f"{target.name!r} and {source.name!r} have prompts of other shapes or ranks: {shapes}"
        )
    tasks = range(of.U.shape[0])
    if task not in ("mean", "none", *tasks):
        raise InputError(f'task is "mean", "none" or one of 0 … {tasks[-1]}, not {task!r}')
    to.P.copy_(of.P)
    for mine, theirs in ((to.U, of.U), (to.V, of.V)) if task != "none" else ():
        mine.copy_(theirs.mean(0) if isinstance(task, str) else theirs[task])


def _prompts(adapter: Adapter) -> list[Values]:
    found = [d.live() for _, d in adapter.deltas() if isinstance(d.method, MultitaskPrompt)]
    if len(found) != 1:
        raise AdapterMismatch(f"{adapter.name!r} holds {len(found)} multitask prompts, not one")
    return found
