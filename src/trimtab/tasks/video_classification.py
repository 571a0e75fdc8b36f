"""Video classification: a label for a clip.

    trimtab tune --task video-classification --model videomae --data moves.csv --out runs/moves

of a file with a column `video` of paths and a column `label`, or of a folder with a folder of clips
for each label. A model such as VideoMAE (Tong et al. 2022, arXiv:2203.12602) looks at a fixed
number of frames, which are taken evenly from the whole clip (`trimtab.data.clips`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column, clips, media
from trimtab.tasks import models
from trimtab.tasks.one_label import LABEL, OneLabel, labelled
from trimtab.tasks.pictures import Pictures, PictureTask, hold_statistics, named
from trimtab.tasks.task import Encoded, shortest_first

if TYPE_CHECKING:
    from datasets import Dataset

VIDEO = Column("video", ("clip", "movie", "file", "path", "file_name", "image"), kind="video")


class Clips(Pictures):
    """An image processor, whose frames are resized and kept as pictures are."""

    count = 1  # frames that the model looks at

    def clips(self, cells: Sequence[Any]) -> Tensor:
        """(n, frames, channels, height, width)"""
        found = [self.keep(("clip", cell), functools.partial(self._seen, cell)) for cell in cells]
        gain, shift = self._scaling if self._plain else (1.0, 0.0)
        made = [torch.from_numpy(one) * gain + shift for one in found]
        return torch.stack(made).to(self.dtype)

    def _seen(self, cell: Any) -> np.ndarray:
        """(frames, channels, height, width): resized bytes, of one plane where all are grey, or the
        pixels themselves."""
        pictures = clips.frames(cell, self.count)
        if not self._plain:
            return self._made(pictures)
        resized = self._made(pictures, do_rescale=False, do_normalize=False)
        grey = (resized == resized[:, :1]).all()
        return np.ascontiguousarray(resized[:, :1]) if grey else resized

    def _made(self, picture: Any, **options: Any) -> np.ndarray:
        """Processors of frames give them as a clip, those of pictures as a batch."""
        given = picture if isinstance(picture, list) else [picture]
        made = np.asarray(self.processor(given, **options)["pixel_values"])
        return made.reshape(-1, *made.shape[-3:])


@dataclass(frozen=True, kw_only=True)
class VideoClassification(OneLabel, PictureTask):
    """`size`, `mean` and `deviation` stand for the checkpoint's own preparation of frames."""

    name: ClassVar[str] = "video-classification"
    columns: ClassVar[tuple[Column, ...]] = (VIDEO, LABEL)
    eval_batch: ClassVar[int] = 8

    def unfit(self, row: Mapping[str, Any], model: str) -> str | None:
        there, needed = clips.length(row["video"]), looked_at(model)
        if there >= needed:
            return None
        what = media.told("clip", row["video"])
        return f"{what} has {there} frames, and {model!r} looks at {needed}: give a longer one"

    def processor(self, model: str) -> Clips:
        count = looked_at(model)
        made = Clips(self._processor(model).processor)
        made.count = count
        return made

    def model(
        self, name: str, labels: Sequence[str], processor: Clips, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name, **models.of_labels(labels))
        model, fresh = models.load_model(
            "AutoModelForVideoClassification", name, config, dtype, dropout=dropout
        )
        hold_statistics(model)
        processor.dtype = dtype
        return model, models.with_head(name, model, fresh, labels)

    def encode(
        self, rows: Dataset, processor: Clips, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Clips stay as the data has them until their batch is made."""
        examples = [{"video": cell, "length": 1} for cell in rows["video"]]
        labelled(examples, rows, labels)
        return shortest_first(examples)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Clips) -> dict[str, Tensor]:
        """(batch, frames, channels, height, width) pixels, and labels (batch,)."""
        batch = {"pixel_values": processor.clips([example["video"] for example in examples])}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def shown(self, rows: Dataset, index: int) -> str:
        return named(rows["video"][index], index)


def looked_at(model: str) -> int:
    """How many frames a model takes."""
    config = models.configuration(model)
    for key in ("num_frames", "frames_per_clip"):
        if isinstance(count := getattr(config, key, None), int):
            return count
    raise InputError(
        f"model {model!r} ({config.model_type}) looks at no clips: its configuration says no "
        "number of frames"
    )
