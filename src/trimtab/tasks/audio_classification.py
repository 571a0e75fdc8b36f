"""Audio classification: a label for a recording.

    trimtab tune --task audio-classification --model wav2vec2 --data digits.csv --out runs/digits

of a file with a column `audio` of paths and a column `label`, or of a folder with a folder of
recordings for each label. Recordings are brought to the sampling rate that the model was trained
on, and cut after `max_seconds`; in a batch, the shorter ones end in silence. For wav2vec 2.0
(Baevski et al. 2020, arXiv:2006.11477) and its kin, each is normalised by itself before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column, media
from trimtab.tasks import models
from trimtab.tasks.one_label import LABEL, OneLabel, labelled
from trimtab.tasks.pictures import hold_statistics, named
from trimtab.tasks.task import Encoded, shortest_first

if TYPE_CHECKING:
    from datasets import Dataset

AUDIO = Column("audio", ("recording", "sound", "wav", "file", "path", "file_name"), kind="audio")
_LEAST = 0.25  # seconds: less is shorter than what the convolutions of some models reach over


class Recordings:
    """A feature extractor, and how much of a recording it is given."""

    def __init__(self, extractor: Any, seconds: float) -> None:
        self.extractor, self.dtype = extractor, torch.float32
        self.rate = int(extractor.sampling_rate)
        self.least, self.most = int(_LEAST * self.rate), int(seconds * self.rate)
        # Extractors of spectrograms have a length of their own, which their models ask for. The
        # mask has each wave normalised without its padding, whether the model reads it or not.
        waves = extractor.model_input_names[0] == "input_values"
        self.options = {"padding": True, "return_attention_mask": True} if waves else {}
        self.masks = getattr(extractor, "return_attention_mask", False) or not waves

    def samples(self, cell: Any) -> np.ndarray:
        """(samples,) at the extractor's rate."""
        wave = media.audio(cell, self.rate)[: self.most]
        return np.pad(wave, (0, max(0, self.least - len(wave))))

    def batch(self, cells: Sequence[Any]) -> dict[str, Tensor]:
        return self.prepared([self.samples(cell) for cell in cells])

    def prepared(self, waves: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The extractor's arrays of these waves, (samples,) each, as the model takes them."""
        made = self.extractor(waves, sampling_rate=self.rate, return_tensors="pt", **self.options)
        read = {key: x for key, x in made.items() if self.masks or key != "attention_mask"}
        return {key: x.to(self.dtype) if x.is_floating_point() else x for key, x in read.items()}


def load_extractor(model: str) -> Any:
    extractor = models.load_processor("AutoFeatureExtractor", model)
    if not hasattr(extractor, "sampling_rate"):
        raise InputError(f"model {model!r} does not hear: its data are prepared by {extractor}")
    return extractor


def check_seconds(task: str, given: Any) -> None:
    if isinstance(given, bool) or not isinstance(given, int | float) or not given >= _LEAST:
        raise InputError(
            f"{task}: max_seconds is a number of seconds, at least {_LEAST}, not {given!r}"
        )


@dataclass(frozen=True, kw_only=True)
class AudioClassification(OneLabel):
    """`max_seconds`: what is heard of a recording, from its beginning."""

    max_seconds: float = 10.0

    name: ClassVar[str] = "audio-classification"
    varied: ClassVar[tuple[str, ...]] = ("audio",)
    columns: ClassVar[tuple[Column, ...]] = (AUDIO, LABEL)
    eval_batch: ClassVar[int] = 16

    def __post_init__(self) -> None:
        check_seconds(self.name, self.max_seconds)

    def processor(self, model: str) -> Recordings:
        return Recordings(load_extractor(model), self.max_seconds)

    def model(
        self,
        name: str,
        labels: Sequence[str],
        processor: Recordings,
        dtype: torch.dtype,
        dropout: bool,
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name, **models.of_labels(labels))
        if not dropout:  # SpecAugment is a dropout of times and frequencies
            config.apply_spec_augment = False
        model, fresh = models.load_model(
            "AutoModelForAudioClassification", name, config, dtype, dropout=dropout
        )
        hold_statistics(model)
        processor.dtype = dtype
        return model, models.with_head(name, model, fresh, labels)

    def encode(
        self, rows: Dataset, processor: Recordings, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Recordings stay as the data has them until their batch is made; their `length` is in
        tenths of a second, so that those of a batch are alike."""
        examples = [
            {"audio": cell, "length": math.ceil(10 * self._seconds(cell))} for cell in rows["audio"]
        ]
        labelled(examples, rows, labels)
        return shortest_first(examples)

    def _seconds(self, cell: Any) -> float:
        return min(self.max_seconds, media.seconds(cell))

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: Recordings
    ) -> dict[str, Tensor]:
        """What the extractor makes of the batch, and labels (batch,)."""
        batch = processor.batch([example["audio"] for example in examples])
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def shown(self, rows: Dataset, index: int) -> str:
        return named(rows["audio"][index], index)
