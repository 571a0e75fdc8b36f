"""docs/speed.md and its picture, from what the benchmarks have written.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growth import slope
from others import ALONE, WITH_PEER

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "speed.md"
PICTURE = RESULTS / "speed.svg"
Found = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A figure of a benchmark, and what it is to be: at least, or at most."""

    work: str
    against: str
    file: str
    value: Callable[[Found], float]
    bound: float
    least: bool = True
    unit: str = " x"
    floor: Callable[[Found], float] | None = None  # the figure, if there were nothing but the floor

    def row(self) -> tuple[str, ...]:
        bound = f"{'≥' if self.least else '≤'} {self.bound:g}{self.unit}"
        try:
            found = read(self.file)
            value = self.value(found)
        except (FileNotFoundError, KeyError):
            return self.work, self.against, bound, "–", "–", "not measured"
        met = value >= self.bound if self.least else value <= self.bound
        floor = f"{self.floor(found):.3g}{self.unit}" if self.floor else "–"
        told = f"{value:.3g}{self.unit}"
        return self.work, self.against, bound, told, floor, "met" if met else "not met"


def read(name: str) -> Found:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf8"))


ENCODER = "MiniLM, real sentences, LoRA of rank 8 on all linear maps, one epoch"
DECODER = "Llama shape (768 x 12, 4 heads of keys), 4 x 256 tokens, LoRA on all linear maps, a step"
LONG = "the same shape, 2 x 2,048 tokens, activation checkpointing"
PACKED = "gsm8k, the same shape, 8 texts a step: useful tokens a second"
MANY = "64 adapters mixed in a batch of 64 x 32 tokens"
FULL = "full fine-tuning with transformers' Trainer"
A, B = "HF PEFT as its guides show it", "HF PEFT, tuned"


def at_floor(peer: str, part: str | None = None) -> Callable[[Found], float]:
    """How many times as fast as a peer the floor is."""

    def ratio(found: Found) -> float:
        own = found[part] if part else found
        return own["median_seconds"][peer] / own["floor_seconds"]

    return ratio


def packed_floor(peer: str) -> Callable[[Found], float]:
    return lambda f: f["floor_tokens_per_second"] / f["median_tokens_per_second"][peer]


# The operations of rank 8 at all maps of a block over those of the block, the small head beside it.
ROUTED = 1 + 8 * (2 * 1536 + 2 * 1024 + 3 * 2816) / (2 * 768**2 + 2 * 768 * 256 + 3 * 768 * 2048)


def ratio(method: str, against: str) -> Callable[[Found], float]:
    return lambda f: f["ratios"][method][against]


def on_gpu() -> Iterator[Target]:
    """None before they are measured."""
    for work, name in (("lora", "LoRA"), ("qlora", "QLoRA")) if gpu() else ():
        title = f"GPU: Llama shape of 8 B, {name} of rank 16, 4 x 1,024 tokens, a step"
        for who, key, bound in ((A, "peer_a", 2.5), ("Unsloth", "unsloth", 1.2)):
            faster, memory = at_work(work, key)
            yield Target(title, who, "gpu", faster, bound)
            yield Target(f"{title}: peak memory", who, "gpu", memory, 1, least=False)


def at_work(work: str, peer: str) -> tuple[Callable[[Found], float], Callable[[Found], float]]:
    """How many times as fast as a peer, and with what part of its memory."""
    return lambda f: f[work]["ratios"][peer], lambda f: 1 / f[work]["memory_ratios"][peer]


def gpu() -> str | None:
    """Which it was, where there was one."""
    return read("gpu")["hardware"]["accelerator"] if (RESULTS / "gpu.json").exists() else None


TARGETS = (
    Target(ENCODER, A, "speed", lambda f: f["ratios"]["peer_a"], 12, floor=at_floor("peer_a")),
    Target(ENCODER, B, "speed", lambda f: f["ratios"]["peer_b"], 3, floor=at_floor("peer_b")),
    Target(
        ENCODER,
        f"{FULL} as its guides show it",
        "speed",
        lambda f: f["ratios"]["full_a"],
        8,
        floor=at_floor("full_a"),
    ),
    Target(
        ENCODER,
        f"{FULL}, tuned",
        "speed",
        lambda f: f["ratios"]["full_b"],
        2.5,
        floor=at_floor("full_b"),
    ),
    *(
        Target(f"MiniLM, `{one}`, a step", who, "others", ratio(one, key), bound)
        for one in (*WITH_PEER, *ALONE)
        for who, key, bound in ((A, "peer_a", 2.0), ("full fine-tuning here", "full", 1.0))
        if one in WITH_PEER or key == "full"
    ),
    Target(
        DECODER,
        A,
        "decoder",
        lambda f: f["short"]["ratios"]["peer_a"],
        3,
        floor=at_floor("peer_a", "short"),
    ),
    Target(
        DECODER,
        B,
        "decoder",
        lambda f: f["short"]["ratios"]["peer_b"],
        2,
        floor=at_floor("peer_b", "short"),
    ),
    Target(
        f"{DECODER}: peak memory",
        A,
        "decoder",
        lambda f: 1 / f["short"]["memory_ratios"]["peer_a"],
        0.6,
        least=False,
    ),
    Target(
        LONG,
        A,
        "decoder",
        lambda f: f["long"]["ratios"]["peer_a"],
        1,
        floor=at_floor("peer_a", "long"),
    ),
    Target(
        f"{LONG}: peak memory",
        A,
        "decoder",
        lambda f: 1 / f["long"]["memory_ratios"]["peer_a"],
        0.5,
        least=False,
    ),
    Target(PACKED, A, "packing", lambda f: f["ratios"]["peer_a"], 3, floor=packed_floor("peer_a")),
    Target(
        PACKED, B, "packing", lambda f: f["ratios"]["peer_b"], 1.5, floor=packed_floor("peer_b")
    ),
    Target(
        "`head` on cached features, an epoch after the first",
        A,
        "head",
        lambda f: f["ratios"]["peer_a"],
        50,
    ),
    Target(
        MANY,
        "the base alone",
        "many",
        lambda f: f["against_base"]["mixed"],
        1.15,
        least=False,
        floor=lambda f: ROUTED,
    ),
    Target(
        f"{MANY}, 1,000 registered",
        "the base alone",
        "many",
        lambda f: f["against_base_with_all_registered"]["mixed"],
        1.15,
        least=False,
        floor=lambda f: ROUTED,
    ),
    Target(
        "registering 1,000 adapters",
        "",
        "many",
        lambda f: f["seconds_to_register_all"],
        10,
        least=False,
        unit=" s",
        floor=lambda f: f.get("seconds_to_touch_their_memory"),
    ),
    Target(
        "switching among them", "", "many", lambda f: f["switching_ms"], 1, least=False, unit=" ms"
    ),
    Target(
        "generation over a frozen bf16 base, a token",
        "the same base unfrozen",
        "generation",
        lambda f: f["against_base"]["frozen"],
        1.05,
        least=False,
    ),
    Target(
        "`import trimtab`",
        "beyond `import torch`",
        "start",
        lambda f: f["seconds"]["import trimtab"],
        0.1,
        least=False,
        unit=" s",
    ),
    Target(
        "`trimtab --help`",
        "",
        "start",
        lambda f: f["seconds"]["trimtab --help"],
        0.4,
        least=False,
        unit=" s",
    ),
    *on_gpu(),
)

TEMPLATE = """# Speed

Written by `make bench` from `benchmarks/results/*.json`; what a row measures is told in the script
of its file's name in `benchmarks/`. Each row is of one run, the contestants in turn, medians.
`≥ 3 x` asks to be three times as fast; `≤ 0.6 x` and `≤ 1.15 x` for that part of the other's memory
or time. The floor is what the figure would be if nothing were left but the arithmetic below.

The targets were set before the work, after prototypes on two cores with AMX, whose matrix products
are several times as fast as here; where one is not met, the floor below says what could be at most.
Trimtab runs as `tune` chooses by measurement: here, products with frozen matrices in eight bits in
training ([decision 24](decisions/0024-eight-bits-in-training.md)), with the accuracy or the loss
beside the peers' in the JSON; "exact" is the same without.

{about}

{table}

Every method's step against full fine-tuning's is in [methods.md](methods.md). {gpu}

![Seconds beside the peers and the floor](../benchmarks/results/speed.svg)

The floor is the arithmetic of a step that cannot be left out, at the rate of the fastest plain
products, of bf16 or of eight-bit integers, measured in the same run (`benchmarks/floor.py`):

{floors}

Where a target is not met: of MiniLM's epoch the products of codes take 37 % of both cores' time,
the rest of the compiled kernels 24, Python 12, torch's GELU and norms 9, threads that wait 4
(perf, before GELU and norms had kernels); to be twelve times as fast, nearly all but the products
would have to go. Of the Llama step 61 % are products of codes with LoRA's, 21 % the head with its
loss, 9 % attention; norms, gates and all the rest 9. Registering an adapter of 84 sites takes
20 ms: half Python's modules, the rest random numbers, memory that is touched for the first time
(5 GB of factors in fp32 for 1,000) and the collector. What was tried is in [the log](LOG.md).

## How cost grows

Forward and backward with LoRA while one size is changed (`benchmarks/growth.py`). The slope is that
of the seconds' logarithm over the size's between the two largest: 1 is linear, less is better.

{growth}

![Seconds as sizes grow](../benchmarks/results/growth.svg)
"""


def bars() -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(title, (name, seconds) …) of each picture: contestants and the floor."""
    names = {"peer_a": A, "peer_b": B, "exact": "Trimtab, exact", "trimtab": "Trimtab"}
    works = ((ENCODER, "speed", ""), (DECODER, "decoder", "short"), (LONG, "decoder", "long"))
    for title, file, part in works:
        try:
            found = read(file)[part] if part else read(file)
            floor = found["floor_seconds"]
        except (FileNotFoundError, KeyError):
            continue
        median = found["median_seconds"]
        seconds = [(name, median[one]) for one, name in names.items() if one in median]
        yield title, [*seconds, ("the products alone", floor)]


def draw() -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "trimtab", "font.size": 9})
    pictures = list(bars())
    figure, axes = plt.subplots(len(pictures), 1, figsize=(8, 1.7 * len(pictures)), squeeze=False)
    for axis, (title, rows) in zip(axes[:, 0], pictures, strict=True):
        names, seconds = zip(*reversed(rows), strict=True)
        colours = ["#1f77b4" if name.startswith("Trimtab") else "#bbbbbb" for name in names]
        drawn = axis.barh(names, seconds, color=colours)
        axis.bar_label(drawn, fmt="%.3g s", padding=3)
        axis.set_title(title, loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


CURVES = {
    "blocks": "parameters, more blocks",
    "width": "parameters, wider",
    "batch": "examples in a batch",
    "length": "tokens in an example",
    "rank": "rank",
    "sites": "adapted maps",
    "adapters on the model": "adapters on the model, one active",
    "adapters in a batch": "adapters mixed in a batch of 32",
    "attaching": "adapters on the model: attaching one more",
}


def curves() -> Found:
    """None before they are measured."""
    try:
        return read("growth")["curves"]
    except FileNotFoundError:
        return {}


def growth() -> str:
    rows = [("what grows", "from … to", "seconds", "slope", "full fine-tuning's"), ("---",) * 5]
    for name, found in curves().items():
        sizes, seconds = found["sizes"], found["seconds"]
        told = found.get("slope", slope(sizes, seconds))
        full = found.get("full", {}).get("slope", "–")
        ends = f"{sizes[0]:,} … {sizes[-1]:,}", f"{seconds[0]:.3g} … {seconds[-1]:.3g}"
        rows.append((CURVES[name], *ends, f"{told:.2f}", f"{full:.2f}" if full != "–" else full))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw_growth() -> None:
    """Seconds over size, both in factors of the first, and the line that is linear."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, found in curves().items():
        grown, cost = (
            [one / values[0] for one in values] for values in (found["sizes"], found["seconds"])
        )
        axis.plot(grown, cost, marker="o", ms=3, lw=1.2, label=CURVES[name])
    axis.plot([1, 64], [1, 64], color="#bbbbbb", ls="--", label="linear")
    axis.set(xscale="log", yscale="log", xlabel="size, times the smallest", ylabel="seconds, times")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "growth.svg", metadata={"Date": None})


def page() -> str:
    head = ("work", "against", "target", "measured", "floor", "")
    rows = [head, ("---",) * len(head), *(target.row() for target in TARGETS)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    floors = [
        f"- {title}: {dict(rows)['Trimtab']:.3g} s, of which the products alone need "
        f"{dict(rows)['the products alone']:.3g} s."
        for title, rows in bars()
    ]
    start = read("start")
    machine, torch = start["hardware"], start["versions"]["torch"]
    about = (
        f"{machine['cores']} cores of an {machine['processor']} ({machine['cpu_capability']}), "
        f"torch {torch}."
    )
    there = f"The GPU: {gpu()}." if gpu() else "No GPU was there to\nmeasure on."
    return TEMPLATE.format(
        gpu=there, about=about, table=table, floors="\n".join(floors), growth=growth()
    )


if __name__ == "__main__":
    draw()
    draw_growth()
    PAGE.write_text(page(), encoding="utf8")
