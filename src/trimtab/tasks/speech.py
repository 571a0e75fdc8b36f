"""What a model that writes down speech is asked by: a feature extractor and a tokenizer.

With connectionist temporal classification a model gives each frame of a recording a character or
the blank. A convolution of kernel k and stride s leaves  ⌊(n - k) / s⌋ + 1  of n steps, and the
frames are what is left after all of them.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.tasks import models
from trimtab.tasks.audio_classification import Recordings, load_extractor

BLANK, UNKNOWN, SPACE = "<pad>", "<unk>", "|"
"""Tokens beside the characters of a vocabulary that is made here, in their order."""

_TOKENIZERS = ("vocab.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_PROMPT = 4  # tokens before a text: of start, language, task, and of no times


class Speech:
    """A feature extractor with a tokenizer, and what of both the model has room for.

    `aligned`: whether the model gives a token for each frame (CTC), or writes a text. `seconds` are
    what it hears, `positions` the tokens that it writes. Of an aligned model without a tokenizer,
    the vocabulary is the data's characters, once `spell` was told them.
    """

    def __init__(self, model: str, seconds: float, language: str | None) -> None:
        self.config = models.configuration(model)
        self.aligned = _aligned(model, self.config)
        extractor = load_extractor(model)
        self.seconds = min(seconds, getattr(extractor, "chunk_length", seconds))
        self.recordings = Recordings(extractor, self.seconds)
        self.tokenizer: Any = _tokenizer(model, self.aligned)
        self.positions = int(getattr(self.config, "max_target_positions", 10**9)) - _PROMPT
        self.asked: dict[str, str] = {}
        if language is not None:
            self._speak(model, language)

    def _speak(self, model: str, language: str) -> None:
        if not hasattr(self.tokenizer, "set_prefix_tokens"):
            raise InputError(f"model {model!r} has no choice of languages: leave out language=")
        try:
            self.tokenizer.set_prefix_tokens(language=language, task="transcribe")
        except ValueError as error:
            raise InputError(f"language {language!r}: {str(error).splitlines()[0]}") from None
        self.asked = {"language": language, "task": "transcribe"}

    # Vocabulary

    def spell(self, vocabulary: Sequence[str]) -> None:
        """Write with these tokens from now on."""
        from transformers import Wav2Vec2CTCTokenizer

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vocab.json"
            ids = {token: i for i, token in enumerate(vocabulary)}
            file.write_text(json.dumps(ids), encoding="utf8")
            self.tokenizer = Wav2Vec2CTCTokenizer(
                str(file),
                bos_token=None,
                eos_token=None,
                pad_token=BLANK,
                unk_token=UNKNOWN,
                word_delimiter_token=SPACE,
            )

    def vocabulary(self) -> list[str]:
        """The tokens by their ids."""
        return [
            str(one) for one in self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        ]

    def unknown(self, text: str) -> list[str]:
        """Characters that no token writes."""
        stands_in = getattr(self.tokenizer, "unk_token_id", None)
        if stands_in is None or stands_in == self.tokenizer.eos_token_id:  # it writes bytes
            return []
        given = (one for one in dict.fromkeys(text) if not one.isspace())
        return [one for one in given if stands_in in self.tokenizer(one)["input_ids"]]

    def known(self) -> str:
        """The vocabulary, in a message."""
        letters = [one for one in self.vocabulary() if len(one) == 1 and one != SPACE]
        return f"it has {''.join(sorted(letters))[:80]}"

    def ids(self, text: str) -> list[int]:
        """The tokens to learn; a start that the model puts there itself is left out."""
        if self.tokenizer is None:
            raise InputError("this model has no vocabulary yet: it is made of the training texts")
        found = list(self.tokenizer(text, verbose=False)["input_ids"])
        start = getattr(self.config, "decoder_start_token_id", None)
        return found[1:] if not self.aligned and found[:1] == [start] else found

    def text(self, row: np.ndarray) -> str:
        """What is said by scores (frames, vocabulary), or by tokens (n,)."""
        if not self.aligned:
            return _plain(self.tokenizer.decode(row, skip_special_tokens=True))
        merged = [int(one) for one, _ in itertools.groupby(row.argmax(-1))]
        left = [one for one in merged if one != self.tokenizer.pad_token_id]
        return _plain(self.tokenizer.decode(left, skip_special_tokens=True, group_tokens=False))

    # Room

    def frames(self, samples: int) -> int:
        """Of an aligned model, for so many samples at its rate."""
        for kernel, stride in _convolutions(self.config):
            samples = max(0, samples - kernel) // stride + (samples >= kernel)
        return samples

    def room(self, seconds: float) -> int:
        """Frames, or tokens, that there are for a recording of this length."""
        if not self.aligned:
            return self.positions
        rate = self.recordings.rate
        return self.frames(max(self.recordings.least, round(seconds * rate)))

    def needed(self, text: str) -> int:
        """Frames, or tokens, that a text takes."""
        if not self.aligned:
            return len(self.ids(text))
        tokens: Sequence[Any] = text if self.tokenizer is None else self.ids(text)
        return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))


def made_vocabulary(characters: Iterable[str]) -> list[str]:
    """Blank, unknown, space, and the characters themselves."""
    own = (one for one in characters if one not in (" ", SPACE))
    return [BLANK, UNKNOWN, SPACE, *own]


def not_in(vocabulary: Sequence[str], text: str) -> list[str]:
    """Characters that a vocabulary which was made here lacks."""
    if list(vocabulary[:3]) != [BLANK, UNKNOWN, SPACE]:
        return []
    return [one for one in dict.fromkeys(text) if one not in (" ", SPACE) and one not in vocabulary]


def _plain(text: Any) -> str:
    return " ".join(str(text).split())


def _aligned(name: str, config: Any) -> bool:
    from transformers.models.auto import modeling_auto

    if config.model_type in modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES:
        if not getattr(config, "conv_kernel", None):
            raise InputError(
                f"model {name!r} reads spectrograms ({config.model_type}): of models with CTC, "
                "those of waves are adapted (wav2vec 2.0, HuBERT, WavLM, UniSpeech, SEW, data2vec)"
            )
        return True
    writes = config.model_type in modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    if not (writes and config.is_encoder_decoder):
        raise InputError(
            f"model {name!r} ({config.model_type}) does not write down speech: "
            "automatic-speech-recognition takes an encoder-decoder such as Whisper, or a model "
            "with CTC such as wav2vec 2.0"
        )
    return False


def _tokenizer(name: str, aligned: bool) -> Any:
    """The checkpoint's own; None where an aligned model came without."""
    folder = Path(models.resolve(name))
    if aligned and folder.is_dir() and not any((folder / one).exists() for one in _TOKENIZERS):
        return None
    try:
        return models.load_tokenizer(name)
    except InputError:
        if aligned and not folder.is_dir():  # a name of the hub, where not every file is to be had
            return None
        raise


def _convolutions(config: Any) -> Iterator[tuple[int, int]]:
    """(kernel, stride) of those that make frames of samples."""
    yield from zip(config.conv_kernel, config.conv_stride, strict=True)
    if getattr(config, "add_adapter", False):
        yield from [(1, config.adapter_stride)] * config.num_adapter_layers
