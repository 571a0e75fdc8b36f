"""Few-shot prompting: a causal language model told k worked examples, and asked the next.

    text₁ ⏎ Label: c₁ ⏎⏎ … textₖ ⏎ Label: cₖ ⏎⏎ x ⏎ Label:

As in Brown et al. 2020 (arXiv:2005.14165). A label is scored by the mean log-likelihood of its
tokens. The order of the examples matters
as much as which they are (Lu et al. 2021, arXiv:2104.08786), so several are tried. Where answers
are generated, the examples stand before each prompt in the task's own form.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from trimtab.recipes import choices
from trimtab.tasks import models

if TYPE_CHECKING:
    from trimtab.tasks import Task

ASK = "\nLabel:"
_BATCH = 4  # texts at once, each with all its labels


def refusal(task: Task, model: str) -> str | None:
    """Why this base cannot be prompted for this task, where it cannot."""
    own = list(getattr(models.configuration(model), "architectures", None) or [])
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in own)
    if task.name == "text-classification":
        if getattr(task, "kind", "one") != "one":
            return "a prompt asks for one label"
        return None if causal else "the base is no causal language model"
    if task.name == "text-generation":
        form = getattr(task, "form", "text")
        return None if form == "answer" else f"form={form} has no answers to show"
    if task.name == "text2text-generation":
        return None
    return f"{task.name} is not asked for in words"


def orders(rows: Any, shots: int, count: int, seed: int) -> list[list[int]]:
    """The same `shots` rows, drawn with the seed, in `count` orders."""
    rng = random.Random(seed)
    drawn = rng.sample(range(len(rows)), min(shots, len(rows)))
    return [rng.sample(drawn, len(drawn)) for _ in range(count)]


@dataclass(frozen=True)
class Prompt:
    """Worked examples before a text, and the labels that may follow."""

    shown: str
    labels: Sequence[str]

    def of(self, text: str) -> choices.Example:
        return choices.Example(f"{self.shown}{text}{ASK}", tuple(self.labels))


def prompt(rows: Any, order: Sequence[int], labels: Sequence[str]) -> Prompt:
    """Of the rows in this order."""
    shown = "".join(f"{rows['text'][i]}{ASK} {rows['label'][i]}\n\n" for i in order)
    return Prompt(shown, labels)


def fitting(tokenizer: Any, rows: Any, shots: int, longest: str, limit: int) -> int:
    """How many of `shots` rows of middling length fit before the longest text."""
    middling = sorted(rows["text"], key=len)[len(rows) // 2]
    each = len(tokenizer(f"{middling}{ASK} {rows['label'][0]}\n\n")["input_ids"])
    room = limit - len(tokenizer(f"{longest}{ASK}")["input_ids"]) - 8
    return max(0, min(shots, room // each))


@torch.no_grad()
def scores(
    model: Any, tokenizer: Any, asked: Prompt, texts: Sequence[str], limit: int
) -> torch.Tensor:
    """(n, labels): the mean log-likelihood of each label's tokens behind each text."""
    found = []
    device = next(model.parameters()).device
    for start in range(0, len(texts), _BATCH):
        examples = [asked.of(text) for text in texts[start : start + _BATCH]]
        batch = choices.encode(model, tokenizer, examples, limit).to(device)
        logits = choices.logits(model, batch).float()
        losses = F.cross_entropy(
            logits.flatten(0, 2), batch.labels.flatten(), ignore_index=choices.IGNORED,
            reduction="none",
        ).view(batch.labels.shape)  # fmt: skip
        count = (batch.labels != choices.IGNORED).sum(-1).clamp(min=1)
        found.append((-losses.sum(-1) / count).cpu())
    return torch.cat(found)


def shown_before(task: Any, rows: Any, order: Sequence[int]) -> Any:
    """A task of generated answers that puts these rows, worked, before each prompt."""
    if task.name == "text-generation":
        worked = "".join(
            f"{task.template.replace('{prompt}', rows['prompt'][i])}{rows['answer'][i]}\n\n"
            for i in order
        )
        return dataclasses.replace(task, template=worked.replace("{prompt}", "") + task.template)
    worked = "".join(f"{task.prefix}{rows['source'][i]}\n{rows['target'][i]}\n\n" for i in order)
    return dataclasses.replace(task, prefix=worked + task.prefix)
