"""Point clouds: what a cloud of points in space is, by a network that transformers does not have.

    PYTHONPATH=benchmarks/tasks trimtab tune --task own.point_clouds:PointClouds \\
        --model models/shapes --data data/turned --out runs/turned

A task of one's own over a plain `nn.Module`. The network sees a cloud in groups (Yu et al. 2022,
Point-BERT, arXiv:2111.14819): centres c_g, each the point that is farthest from those before it,
and around each its k nearest points,

    t_g = max over i of  MLP(p_i - c_g)  +  MLP(c_g)

and blocks of attention over the groups (Guo et al. 2021, PCT, arXiv:2012.09688); the head reads the
largest and the mean of what they give. A model is a folder of `config.json` and
`model.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.data.clouds import points
from trimtab.tasks.one_label import LABEL, OneLabel, labelled
from trimtab.tasks.task import Batch, Encoded, shortest_first

# The network


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """`points` are seen of a cloud, in `groups` of the `neighbours` nearest to a centre."""

    labels: tuple[str, ...]
    points: int = 256
    groups: int = 32
    neighbours: int = 16
    width: int = 64
    depth: int = 3
    heads: int = 4


class PointTransformer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.patch = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.place = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, len(sizes.labels))

    def forward(self, points: Tensor) -> Tensor:
        """Scores (batch, labels) of points (batch, n, 3)."""
        centres, groups = grouped(points, self.sizes.groups, self.sizes.neighbours)
        x = self.patch(groups).amax(2) + self.place(centres)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(torch.cat([x.amax(1), x.mean(1)], -1)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, groups, width), as it came."""
        y = self.before(x)
        q, k, v = (
            of(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for of in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.feed(self.between(x))


def grouped(points: Tensor, groups: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Centres (batch, groups, 3), and their nearest points as seen from them, (batch, groups,
    neighbours, 3). The first centre is the point farthest from the middle."""
    with torch.no_grad():
        rows = torch.arange(len(points), device=points.device)
        nearest, chosen = points.square().sum(-1), []
        for turn in range(groups):
            chosen.append(nearest.argmax(-1))
            apart = (points - points[rows, chosen[-1], None]).square().sum(-1)
            nearest = torch.minimum(nearest, apart) if turn else apart
        centres = points[rows[:, None], torch.stack(chosen, -1)]
        near = torch.cdist(centres, points).topk(neighbours, largest=False).indices
    return centres, points[rows[:, None, None], near] - centres[:, :, None]


def write(model: PointTransformer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(model.sizes)), "utf8")
    save_file(model.state_dict(), folder / "model.safetensors")


def sizes_of(folder: str) -> Sizes:
    path = Path(folder).expanduser() / "config.json"
    try:
        given = json.loads(path.read_text("utf8"))
        return Sizes(**{**given, "labels": tuple(given["labels"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe a point transformer: {error}") from None


# The task


@dataclass(frozen=True, kw_only=True)
class PointClouds(OneLabel):
    name: ClassVar[str] = "point-clouds"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("points", ("cloud", "file", "path", "file_name"), kind="points"),
        LABEL,
    )
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)  # in which distances are told apart

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        own = sizes_of(name).labels
        return list(own if sorted(own) == sorted(labels) else labels)

    def processor(self, model: str) -> int:
        return sizes_of(model).points

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[PointTransformer, list[str]]:
        """With a new head, where the labels are others than the checkpoint's."""
        sizes = sizes_of(name)
        state = load_file(Path(name).expanduser() / "model.safetensors")
        known = list(sizes.labels) == list(labels)
        fresh = [] if known else [key for key in state if key.startswith("head.")]
        model = PointTransformer(Sizes(**{**asdict(sizes), "labels": tuple(labels)}))
        kept = {key: tensor for key, tensor in state.items() if key not in fresh}
        model.load_state_dict({**model.state_dict(), **kept})
        return model.to(dtype), fresh

    def width(self, name: str) -> int:
        return sizes_of(name).width

    def encode(
        self, rows: Any, processor: int, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples: list[dict[str, Any]] = [{"points": cell, "length": 1} for cell in rows["points"]]
        labelled(examples, rows, labels)
        return shortest_first(examples)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: int) -> dict[str, Tensor]:
        """points (batch, n, 3), and labels (batch,)."""
        clouds = [seen(points(example["points"]), processor) for example in examples]
        batch = {"points": torch.from_numpy(np.stack(clouds))}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = model(batch["points"])
        return self.loss_of(scores, batch["labels"]), scores

    def shown(self, rows: Any, index: int) -> str:
        cell = rows["points"][index]
        return Path(cell).name if isinstance(cell, str) else f"row {index + 1}"


def seen(cloud: np.ndarray, n: int) -> np.ndarray:
    """(n, 3) of the points, in the unit ball around their middle; of fewer, some twice. Which, is
    drawn once and for all."""
    drawn = np.random.default_rng(0).permutation(len(cloud))
    taken = cloud[np.resize(drawn, n)]
    taken = taken - taken.mean(0)
    return taken / np.linalg.norm(taken, axis=1).max()
