"""What the tests of loops run over, and what each of them states.

A further method is one more line of `METHODS`, by its name in the registry.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cases
import torch
import transformers as hf
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import Adapter
from trimtab.core.method import Method
from trimtab.core.registry import build

SHARED = Path(__file__).parents[3] / "shared"
STORIES = SHARED / "models" / "stories260K"
TEXT = SHARED / "data" / "tinyshakespeare" / "input.txt"
TASKS = SHARED / "data" / "self_instruct" / "seed_tasks.jsonl"
LENGTH = 32


def stories() -> nn.Module:
    """A Llama that tells stories: real weights, tied output layer, norms and maps without bias."""
    return copy.deepcopy(_stories())


@functools.cache
def _stories() -> nn.Module:
    return hf.AutoModelForCausalLM.from_pretrained(STORIES)


def gpt2() -> nn.Module:
    """Random, with biases, fused projections and tied output layer; it reads the same tokens."""
    return copy.deepcopy(_gpt2())


@functools.cache
def _gpt2() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return random_gpt2()


def random_gpt2(**options: Any) -> nn.Module:
    sizes = {"vocab_size": 512, "n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 4}
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**{**sizes, **still, **ends, **options}))


def untied() -> nn.Module:
    """A model whose output layer is its own: one that has a head."""
    model = gpt2()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@dataclass(frozen=True)
class Kind:
    """A method, the model that it is tried on, and what trains whole beside it."""

    name: str
    base: Callable[[], nn.Module] = stories
    train: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        return build(self.name, self.arguments)

    def prepared(self) -> nn.Module:
        """The base, and on it what the method combines: adapters that have been trained."""
        model = self.base()
        for name in self.arguments.get("over", ()):
            move(trimtab.attach(model, trimtab.LoRA(rank=2), name=name))
        return model

    def adapted(self, seed: int = 0) -> nn.Module:
        """The base with a fresh adapter, always the same one for a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.prepared()
            trimtab.attach(model, self.method, train=self.train)
        return model

    def batch(self, first: int = 0, share: slice = slice(None)) -> dict[str, Any]:
        """Four examples, or a share of them, with the facts that the method asks of a call."""
        given = {**batch(first), **self.facts}
        return {k: v[share] if isinstance(v, Tensor) else v for k, v in given.items()}

    def __str__(self) -> str:
        return "+".join([self.name, *(["head"] if self.train else [])])


METHODS = [
    Kind("lora"),
    Kind("lora", train=("lm_head",)),
    Kind("ia3"),
    Kind("bitfit", base=gpt2),
]
ADALORA = Kind("adalora", arguments={"rank": 4, "target": 2})
SPREAD = [
    Kind("vera"),
    Kind("compacter"),
    Kind("conditional", facts={"task_ids": torch.tensor([0, 1, 1, 0])}),
    Kind("dora"),
    Kind("oft"),
    Kind("ln"),
    Kind("houlsby"),
    Kind("parallel"),
    Kind("reft"),
    Kind("coda", facts={"use_cache": False}),
    Kind("prompt"),
    Kind("p-tuning"),
    Kind("prefix"),
    Kind("fusion", arguments={"over": ("one", "other")}),
    Kind("side"),
    ADALORA,
    Kind("diff-pruning", arguments={"budget": 0.1, "l0": 1e-5}),
    Kind("tokens", arguments={"rows": tuple(range(0, 512, 2))}),
]
"""The kinds of laws that two processes are tried on further: one line for each way to be held,
shared, called, masked or pruned."""
RESUMED = [*METHODS, *(kind for kind in SPREAD if kind.name in ("compacter", "adalora"))]
SELECTIONS = [Kind("layers"), Kind("full"), Kind("head", base=untied)]
HEADLESS = [kind for kind in METHODS if not kind.train]
"""For trainers that read the output layer's weight and never call it."""


@functools.cache
def tokenizer() -> Any:
    found = hf.AutoTokenizer.from_pretrained(STORIES)
    found.pad_token = found.eos_token
    return found


@functools.cache
def rows(count: int = 16) -> list[dict[str, Tensor]]:
    """Pieces of Shakespeare, as many tokens each."""
    text = TEXT.read_text(encoding="utf8")[: 20 * count * LENGTH]
    ids = torch.tensor(tokenizer()(text)["input_ids"])[: count * LENGTH].view(count, LENGTH)
    return [{"input_ids": row, "labels": row} for row in ids]


def batch(first: int = 0, size: int = 4) -> dict[str, Tensor]:
    chosen = rows()[first : first + size]
    return {key: torch.stack([row[key] for row in chosen]) for key in chosen[0]}


def batches() -> list[dict[str, Tensor]]:
    return [batch(first) for first in range(0, len(rows()), 4)]


@functools.cache
def tasks(count: int = 8) -> list[dict[str, str]]:
    """Instructions and answers, short enough to be whole."""
    lines = TASKS.read_text(encoding="utf8").splitlines()
    pairs = [(row["instruction"], row["instances"][0]["output"]) for row in map(json.loads, lines)]
    short = [(a, b) for a, b in pairs if len(a) < 80 and 20 < len(b) < 80]
    return [{"prompt": a, "completion": " " + b} for a, b in short[:count]]


def preferences(count: int = 8) -> list[dict[str, str]]:
    """The answer to an instruction is preferred to the answer to another one."""
    found = tasks(count)
    return [
        {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]}
        for one, other in zip(found, [*found[1:], found[0]], strict=True)
    ]


def mean_loss(model: nn.Module) -> float:
    mode = model.training
    model.eval()
    with torch.no_grad():
        found = sum(model(**one).loss.item() for one in batches()) / len(batches())
    model.train(mode)
    return found


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """What the base alone consists of, deltas left out."""
    return {k: v.clone() for k, v in model.state_dict().items() if ".deltas." not in f".{k}"}


def adapter_of(model: nn.Module) -> Adapter:
    return trimtab.core.adapter.record(model).adapter("default")


def delta_state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in adapter_of(model).tensors().items()}


def move(adapter: Adapter) -> None:
    """As training would."""
    cases.perturb(adapter, by=0.02)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The same names, and the same bits."""
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_only_the_adapter_trained(kind: Kind, model: nn.Module) -> None:
    """The base is bit for bit what it was, and all that trains of the adapter has moved."""
    assert_equal(base_state(model), base_state(kind.base()))
    start, now = delta_state(kind.adapted()), delta_state(model)
    trained = {name for name, tensor in adapter_of(model).tensors().items() if tensor.requires_grad}
    start = {name: tensor for name, tensor in start.items() if name in trained}
    assert [name for name in start if torch.equal(start[name], now[name])] == []


def assert_pruned(model: nn.Module) -> None:
    """AdaLoRA has come to its budget: so many triplets are left on average."""
    masks = [tensor for name, tensor in delta_state(model).items() if name.endswith(".mask")]
    assert sum(mask.sum() for mask in masks) == ADALORA.method.target * len(masks)


def assert_saved_is_the_same(kind: Kind, model: nn.Module, folder: Path) -> None:
    """Save, load onto the base: the same outputs."""
    trimtab.save(model, folder)
    again = kind.base()
    trimtab.load(again, folder)
    expected = cases.logits(model.eval(), batch())
    assert torch.equal(cases.logits(again.eval(), batch()), expected)
    cases.assert_differs(cases.logits(kind.base().eval(), batch()), expected)
