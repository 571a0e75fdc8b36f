"""Speech recognition: the text that a recording says.

    trimtab tune --task automatic-speech-recognition --model whisper --data calls.csv --out runs/x

of a file with a column `audio` of paths and a column `text`. Two kinds of models:

Encoder-decoders such as Whisper (Radford et al. 2022, arXiv:2212.04356) write the text token by
token; answers are generated.

    L = - mean over the text's tokens of  log p(token | recording, those before)

Connectionist temporal classification (Graves et al. 2006), with wav2vec 2.0 (arXiv:2006.11477) and
its kin, gives each frame t of the recording a character or the blank. A path π of such says the
text that is left when repeats are merged and then blanks are dropped, B(π); answers are read from
the path of the likeliest one in each frame.

    L = mean over examples of  - 1/|y| log Σ_{π: B(π) = y} Π_t p_t(π_t)

Frames of padding belong to no path. A text of n characters, r of which repeat the one before, needs
n + r frames: no path of fewer says it, and its loss would be infinite.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column, media
from trimtab.tasks import models
from trimtab.tasks.audio_classification import AUDIO, check_seconds
from trimtab.tasks.pictures import hold_statistics, named
from trimtab.tasks.speech import Speech, made_vocabulary, not_in
from trimtab.tasks.task import (
    Batch,
    Encoded,
    Outputs,
    Task,
    at_least,
    refuse_unless_counts,
    shortest_first,
)
from trimtab.tasks.tokens import IGNORED, pad

if TYPE_CHECKING:
    from datasets import Dataset

Case = Literal["keep", "upper", "lower"]
_TEXT = ("transcript", "transcription", "sentence", "words", "target", "normalized_text")


@dataclass(frozen=True, kw_only=True)
class AutomaticSpeechRecognition(Task):
    """`case`: how texts are written before they are learnt and compared, as the model's vocabulary
    asks; `language`: of a model that knows several, such as `en`; longer recordings than
    `max_seconds` are refused; generated answers have `max_new_tokens` at most."""

    case: Case = "keep"
    language: str | None = None
    max_seconds: float = 30.0
    max_new_tokens: int = 128

    name: ClassVar[str] = "automatic-speech-recognition"
    varied: ClassVar[tuple[str, ...]] = ("audio",)
    placed: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = (AUDIO, Column("text", _TEXT, answer=True))
    by_loss: ClassVar[bool] = True
    by_token: ClassVar[bool] = True
    counts_tokens: ClassVar[bool] = False
    eval_batch: ClassVar[int] = 16

    def __post_init__(self) -> None:
        check_seconds(self.name, self.max_seconds)
        refuse_unless_counts(self, "max_new_tokens")
        if self.case not in ("keep", "upper", "lower"):
            raise InputError(f"{self.name}: case is keep, upper or lower, not {self.case!r}")

    @property
    def metrics(self) -> tuple[str, ...]:
        return "word_error_rate", "character_error_rate"

    # Data

    def written(self, text: str) -> str:
        """A text as it is learnt and compared."""
        text = " ".join(text.split())
        return text if self.case == "keep" else getattr(text, self.case)()

    def unfit(self, row: Mapping[str, Any], model: str) -> str | None:
        speech = _opened(self, model)
        seconds = media.seconds(row["audio"])
        if seconds > speech.seconds:
            what = media.told("recording", row["audio"])
            cure = ", or raise max_seconds" if speech.seconds == self.max_seconds else ""
            return (
                f"{what} has {seconds:.1f} seconds and {speech.seconds:g} are heard: cut it in "
                f"pieces{cure}"
            )
        return (
            self._unsayable(self.written(row["text"]), seconds, speech) if "text" in row else None
        )

    def _unsayable(self, text: str, seconds: float, speech: Speech) -> str | None:
        if unknown := speech.unknown(text):
            shown = " ".join(map(repr, unknown[:5]))
            return (
                f"the text has {shown}, which the model's vocabulary lacks: "
                f"{speech.known()}. Rewrite the text, or choose case=upper or case=lower"
            )
        needed, there = speech.needed(text), speech.room(seconds)
        if needed > there:
            what = "frames" if speech.aligned else "tokens"
            return (
                f"the text needs {needed:,} {what}, and the model has {there:,} for "
                f"{seconds:.2f} seconds: is it the text of this recording?"
            )
        return None

    # Labels: of a model with CTC its vocabulary, in order

    def labels(self, rows: Dataset) -> list[str]:
        return sorted({character for text in rows["text"] for character in self.written(text)})

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        speech = _opened(self, name)
        if not speech.aligned:
            return []
        return speech.vocabulary() if speech.tokenizer else made_vocabulary(labels)

    # Model

    def processor(self, model: str) -> Speech:
        return Speech(model, self.max_seconds, self.language)

    def model(
        self, name: str, labels: Sequence[str], processor: Speech, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        changes = {}
        made = processor.aligned and processor.tokenizer is None
        if made:
            processor.spell(labels)
            changes = {"vocab_size": len(labels)}
        config = models.configuration(name, **changes)
        if processor.aligned:
            config.pad_token_id = processor.tokenizer.pad_token_id
        if not dropout:  # SpecAugment is a dropout of times and frequencies
            config.apply_spec_augment = False
        auto = "AutoModelForCTC" if processor.aligned else "AutoModelForSpeechSeq2Seq"
        model, fresh = models.load_model(auto, name, config, dtype, dropout=dropout)
        hold_statistics(model)
        processor.recordings.dtype = dtype
        if made:  # a head for other characters, were there one in the checkpoint, says nothing
            fresh = sorted({*fresh, *models.of_head(model)})
        return model, fresh

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    # Examples

    def encode(
        self, rows: Dataset, processor: Speech, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Recordings stay as the data has them until their batch is made; their `length` is in
        tenths of a second, so that those of a batch are alike."""
        examples: list[dict[str, Any]] = [
            {"audio": cell, "length": math.ceil(10 * media.seconds(cell))} for cell in rows["audio"]
        ]
        if labels is not None:
            for example, text in zip(examples, rows["text"], strict=True):
                example["labels"] = processor.ids(self.written(text))
        return shortest_first(examples)

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: Speech
    ) -> dict[str, Tensor]:
        """What the extractor makes of the batch; with CTC the frames (batch,) of each recording
        without its padding; labels (batch, longest)."""
        waves = [processor.recordings.samples(example["audio"]) for example in examples]
        batch = processor.recordings.prepared(waves)
        if processor.aligned:
            batch["frames"] = torch.tensor([processor.frames(len(wave)) for wave in waves])
        if "labels" in examples[0]:
            batch["labels"] = pad(examples, "labels", IGNORED)
        return batch

    # Training and answers

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        if "frames" not in batch:
            return super().loss(model, batch)
        outputs, labels = model(**_inputs(batch)), batch["labels"]
        # in fp32: a path's likelihood is a product over all frames
        likelihoods = outputs.logits.float().log_softmax(-1).transpose(0, 1)
        told = (labels != IGNORED).sum(-1)
        loss = F.ctc_loss(
            likelihoods,
            labels.clamp(min=0),
            batch["frames"],
            told,
            blank=model.config.pad_token_id,
            reduction="mean",
        )
        return loss, outputs

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """With CTC the scores (frames, vocabulary) of each recording, without its padding."""
        if "frames" not in batch:
            return super().rows_of(outputs, batch)
        scores = outputs.logits.float().cpu().numpy()
        return [one[: int(n)] for one, n in zip(scores, batch["frames"], strict=True)]

    def ask(self, model: Any, batch: Batch, processor: Speech) -> Outputs:
        """The same; else the tokens that are generated."""
        if processor.aligned:
            return self.rows_of(model(**_inputs(batch)), batch)
        most = min(self.max_new_tokens, processor.positions)
        options = {"max_new_tokens": most, "do_sample": False, "num_beams": 1}
        found = model.generate(**_inputs(batch), **options, **processor.asked)
        return list(found.cpu().numpy())

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Speech
    ) -> list[str]:
        return [processor.text(one) for one in outputs]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[str]:
        return [self.written(text) for text in rows["text"]]

    def told(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Speech
    ) -> list:
        answers = self.answers(outputs, rows, labels, processor)
        return [{"audio": self.shown(rows, i), "text": text} for i, text in enumerate(answers)]

    def shown(self, rows: Dataset, index: int) -> str:
        return named(rows["audio"][index], index)

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        at_least(rows, where)
        for i, text in enumerate(rows["text"], start=1):
            if labels and (unknown := not_in(labels, self.written(text))):
                raise InputError(
                    f"{where}, row {i}: the text has {unknown[0]!r}, which no text of this run's "
                    "training data had"
                )


@functools.lru_cache(maxsize=4)
def _opened(task: AutomaticSpeechRecognition, model: str) -> Speech:
    """What rows are looked at by, once for all of them."""
    return task.processor(model)


def _inputs(batch: Batch) -> dict[str, Any]:
    return {key: x for key, x in batch.items() if key not in ("labels", "frames")}
