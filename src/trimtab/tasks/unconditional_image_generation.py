"""Image generation: pictures like those of the data, or of a class of them.

    L = mean over pictures and noise of  mean of (f(x_t, t, class) - target)²

where x_t is the picture with noise mixed in at a random time t, and the target is the noise, or
the velocity of a flow (`trimtab.tasks.denoisers` has the equations; Ho et al. 2020,
arXiv:2006.11239, Lipman et al. 2022, arXiv:2210.02747). Held-out pictures are asked at fixed
times, with noise that follows from their row, so that two models meet the same.

    trimtab tune --task unconditional-image-generation --model unet --data digits/ --out runs/digits
    printf '3\\n7\\n' | trimtab predict runs/digits --data -

draws a picture for each line, into `drawn/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import denoisers
from trimtab.tasks.image_classification import IMAGE
from trimtab.tasks.task import (
    Batch,
    Encoded,
    Outputs,
    Task,
    at_least,
    refuse_unless_counts,
    shortest_first,
)
from trimtab.tasks.text_classification import numbers_first

if TYPE_CHECKING:
    from datasets import Dataset

LABEL = Column("label", ("class", "category", "digit", "prompt"), required=False)
SEED = Column("seed", (), required=False, kind="number")
TO = Column("to", ("out", "output"), required=False)


@dataclass(frozen=True, kw_only=True)
class UnconditionalImageGeneration(Task):
    """`steps`: from noise to a picture; `levels`: times at which a held-out picture is asked;
    `folder`: where pictures are drawn to that are not told where."""

    steps: int = 50
    levels: int = 4
    folder: str = "drawn"

    name: ClassVar[str] = "unconditional-image-generation"
    columns: ClassVar[tuple[Column, ...]] = (IMAGE, LABEL, SEED, TO)
    counts_tokens: ClassVar[bool] = False
    eval_batch: ClassVar[int] = 32

    def __post_init__(self) -> None:
        refuse_unless_counts(self, "steps", "levels")

    @property
    def given(self) -> tuple[str, ...]:
        return "label", "seed", "to"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("denoising_loss",)

    # Data

    def unfit(self, row: Mapping[str, Any], model: str) -> str | None:
        classes = denoisers.files(model).classes
        if classes and not row.get("label"):
            return f"no label, and {model!r} draws one of {classes} classes"
        seed = row.get("seed")
        if seed is not None and not (seed.is_integer() and 0 <= seed < 2**63):
            return f"the seed is {seed:g}, not a whole number from 0 on"
        return None

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        """The classes: numbers are the model's own, names are counted in order."""
        classes = denoisers.files(name).classes
        numbers = [label for label in labels if label.isdecimal() and int(label) < classes]
        if len(numbers) == len(labels):
            return [str(i) for i in range(classes)]
        if classes and len(labels) > classes:
            raise InputError(
                f"the data have {len(labels)} labels, and {name!r} has {classes} classes"
            )
        return list(labels) if classes else []

    def labels(self, rows: Dataset) -> list[str]:
        known = rows["label"] if "label" in rows.column_names else []
        return sorted(set(known) - {""}, key=numbers_first)

    # Model

    def processor(self, model: str) -> denoisers.Reader:
        return denoisers.Reader(denoisers.files(model))

    def model(
        self,
        name: str,
        labels: Sequence[str],
        processor: denoisers.Reader,
        dtype: torch.dtype,
        dropout: bool,
    ) -> tuple[Any, list[str]]:
        processor.names = list(labels)
        return denoisers.network(name, dtype, dropout), []

    # Examples

    def encode(
        self,
        rows: Dataset,
        processor: denoisers.Reader,
        labels: Sequence[str] | None,
        max_length: int,
    ) -> Encoded:
        """Held-out pictures with the seed of their noise; without `labels`, what is to be drawn."""
        examples = self._examples(rows, processor, labels is not None)
        for i, example in enumerate(examples):
            example["seed"] = i if labels is not None else self._seed(rows, i)
        return shortest_first(examples)

    def encode_for_training(
        self,
        rows: Dataset,
        processor: denoisers.Reader,
        labels: Sequence[str] | None,
        max_length: int,
    ) -> Encoded:
        """Whose noise is new in every epoch."""
        return shortest_first(self._examples(rows, processor, True))

    def _examples(
        self, rows: Dataset, processor: denoisers.Reader, pictures: bool
    ) -> list[dict[str, Any]]:
        examples: list[dict[str, Any]] = [{"length": 1} for _ in range(len(rows))]
        if pictures:
            for example, cell in zip(examples, rows["image"], strict=True):
                example["image"] = cell
        if processor.files.classes:
            for example, label in zip(examples, rows["label"], strict=True):
                example["class"] = processor.index(label)
        return examples

    def _seed(self, rows: Dataset, index: int) -> int:
        given = rows["seed"][index] if "seed" in rows.column_names else None
        return index if given is None else int(given)

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: denoisers.Reader
    ) -> dict[str, Tensor]:
        """(n, channels, height, width) pixels from -1 to 1; seeds (n,), classes (n,)."""
        batch = {}
        if "image" in examples[0]:
            pixels = [processor.pixels(example["image"]) for example in examples]
            batch["pixels"] = torch.from_numpy(np.stack(pixels))
        for name, key in (("seeds", "seed"), ("classes", "class")):
            if key in examples[0]:
                batch[name] = torch.tensor([example[key] for example in examples])
        return batch

    # Training and answers

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """And that of each picture (n,)."""
        x, seeds = batch["pixels"], batch.get("seeds")
        rounds = (
            [self._new(x, model.noise)] if seeds is None else self._fixed(x, seeds, model.noise)
        )
        each = torch.stack([_errors(model, x, *one, batch.get("classes")) for one in rounds])
        return each.mean(), each.mean(0)

    def _new(self, x: Tensor, noise: denoisers.Noise) -> tuple[Tensor, Tensor]:
        """Noise like the pictures, and its places in time (n,)."""
        return torch.randn_like(x), torch.randint(len(noise.times), (len(x),), device=x.device)

    def _fixed(
        self, x: Tensor, seeds: Tensor, noise: denoisers.Noise
    ) -> list[tuple[Tensor, Tensor]]:
        """At the middles of equal parts of the time, with noise that follows from the seeds."""
        found = []
        for level in range(self.levels):
            at = int((level + 0.5) / self.levels * len(noise.times))
            drawn = _noise(x.shape[1:], (seeds * self.levels + level).tolist()).to(x)
            found.append((drawn, torch.full((len(x),), at, device=x.device)))
        return found

    def rows_of(self, outputs: Tensor, batch: Batch) -> Outputs:
        return outputs.detach().float().cpu().numpy()

    def ask(self, model: Any, batch: Batch, processor: denoisers.Reader) -> Outputs:
        """The loss of each picture; where there are none, pictures (n, channels, height, width)."""
        if "pixels" in batch:
            return self.rows_of(self.loss(model, batch)[1], batch)
        shape = (processor.files.config["in_channels"], *processor.files.size)
        begun = _noise(shape, batch["seeds"].tolist()).to(batch["seeds"].device)
        return self.rows_of(
            model.noise.drawn(model, begun, batch.get("classes"), self.steps), batch
        )

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[float]:
        return [float(loss) for loss in outputs]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[float]:
        return [0.0] * len(rows)

    def told(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: denoisers.Reader
    ) -> list:
        """Each picture is written as a PNG."""
        found = []
        for i, picture in enumerate(outputs):
            to = rows["to"][i] if "to" in rows.column_names else ""
            path = Path(to or f"{self.folder}/{i + 1}.png")
            _write(picture, path)
            label = {"label": rows["label"][i]} if processor.files.classes else {}
            found.append({"file": str(path), **label, "seed": self._seed(rows, i)})
        return found

    def shown(self, rows: Dataset, index: int) -> str:
        cell = rows["image"][index]
        named = cell if isinstance(cell, str) else f"picture {index + 1}"
        label = rows["label"][index] if "label" in rows.column_names else ""
        return f"{named} ({label})" if label else named

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        at_least(rows, where)
        unknown = [label for label in self.labels(rows) if labels and label not in labels]
        if unknown:
            raise InputError(f"{where}: label {unknown[0]!r} is none of {', '.join(labels)}")


def _errors(model: Any, x: Tensor, noise: Tensor, at: Tensor, classes: Tensor | None) -> Tensor:
    """The mean square error of each picture (n,)."""
    mixed, times, target = model.noise.mixed(x, noise, at)
    return (denoisers.said(model, mixed, times, classes) - target).square().flatten(1).mean(1)


def _noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """(n, *shape): of each seed the same wherever it is drawn."""
    each = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(*shape, generator=one) for one in each])


def _write(picture: np.ndarray, path: Path) -> None:
    from PIL import Image

    values = ((picture + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    made = Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written as a picture: {error}") from None
