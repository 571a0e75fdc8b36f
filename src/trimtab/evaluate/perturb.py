"""Small changes to what a model is given, which leave the right answer as it is.

    neighbouring key    a letter becomes one beside it on the keyboard (QWERTY)
    dropped letter      a letter is left out
    swapped letters     two letters that stand together change places
    lower, upper case   all letters
    noise (pictures)    normal, with a standard deviation of 0.1 of the scale
    noise (sound)       white, 20 dB below the recording

A typo befalls one word in five of those with four letters or more, at least one a text that has
such a word, and never a word's first letter. What is drawn follows from the seed and the text's
place: the same run gives the same typos.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trimtab.data import Column, media

SHARE = 0.2  # of the words that are long enough
_WORD = re.compile(r"[^\W\d_]{4,}")
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_PICTURE, _SOUND = 0.1, 20.0  # of the scale; decibels

Typo = Callable[[str, int, random.Random], str]  # a word, where, and what is drawn


def neighbours() -> dict[str, str]:
    """Letter -> the letters whose keys touch its own."""
    places = {key: (x + 0.5 * y, y) for y, row in enumerate(_KEYS) for x, key in enumerate(row)}
    return {
        key: "".join(
            other
            for other, (u, v) in places.items()
            if other != key and abs(x - u) <= 1 and abs(y - v) <= 1
        )
        for key, (x, y) in places.items()
    }


_NEAR = neighbours()


def _neighbouring(word: str, at: int, drawn: random.Random) -> str:
    near = _NEAR.get(word[at].lower())
    if near is None:
        return word
    new = drawn.choice(near)
    return word[:at] + (new.upper() if word[at].isupper() else new) + word[at + 1 :]


def _dropped(word: str, at: int, drawn: random.Random) -> str:
    return word[:at] + word[at + 1 :]


def _swapped(word: str, at: int, drawn: random.Random) -> str:
    at = min(at, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


TYPOS: dict[str, Typo] = {
    "neighbouring key": _neighbouring,
    "dropped letter": _dropped,
    "swapped letters": _swapped,
}
CASES: dict[str, Callable[[str], str]] = {"lower case": str.lower, "upper case": str.upper}
NOISE = "noise"


def text(given: str, name: str, drawn: random.Random) -> str:
    """A text with typos, or in one case."""
    if name in CASES:
        return CASES[name](given)
    words = list(_WORD.finditer(given))
    hit = {i for i in range(len(words)) if drawn.random() < SHARE}
    hit = hit or ({drawn.randrange(len(words))} if words else set())
    for i in sorted(hit, reverse=True):
        word, (start, end) = words[i][0], words[i].span()
        given = (
            given[:start] + TYPOS[name](word, drawn.randrange(1, len(word)), drawn) + given[end:]
        )
    return given


def _words(given: Sequence[str], name: str, drawn: random.Random) -> list[str]:
    """Of words that each have a tag: as many as there were."""
    if name in CASES:
        return [CASES[name](word) for word in given]
    return [text(word, name, drawn) if drawn.random() < SHARE else word for word in given]


def _picture(cell: media.Cell, drawn: random.Random) -> bytes:
    from PIL import Image

    pixels = np.asarray(media.image(cell), dtype=float)
    noise = np.random.default_rng(drawn.getrandbits(63)).normal(0, 255 * _PICTURE, pixels.shape)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).round().astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _sound(cell: media.Cell, drawn: random.Random) -> bytes:
    import soundfile

    rate = media.sampling_rate(cell)
    wave = media.audio(cell, rate)
    level = np.sqrt(np.mean(wave.astype(float) ** 2)) * 10 ** (-_SOUND / 20)
    noise = np.random.default_rng(drawn.getrandbits(63)).normal(0, level, wave.shape)
    out = io.BytesIO()
    soundfile.write(out, np.clip(wave + noise, -1, 1).astype(np.float32), rate, format="WAV")
    return out.getvalue()


_CHANGE: dict[str, Callable[[Any, str, random.Random], Any]] = {
    "text": text,
    "words": _words,
    "image": lambda cell, name, drawn: _picture(cell, drawn),
    "audio": lambda cell, name, drawn: _sound(cell, drawn),
}


def kinds(columns: Sequence[Column]) -> list[str]:
    """The changes that can be made to columns of these kinds."""
    found = {column.kind for column in columns}
    written = [*TYPOS, *CASES] if found & {"text", "words"} else []
    return [*written, *([NOISE] if found & {"image", "audio"} else [])]


def changed(rows: Any, columns: Sequence[Column], name: str, seed: int) -> Any:
    """The rows with one change made to these of their columns."""
    import datasets

    table = {key: list(rows[key]) for key in rows.column_names}
    features = dict(rows.features)
    for column in columns:
        if name in kinds([column]):
            change = _CHANGE[column.kind]
            table[column.name] = [
                change(cell, name, random.Random(f"{seed} {name} {column.name} {i}"))
                for i, cell in enumerate(table[column.name])
            ]
            if name == NOISE:
                features[column.name] = datasets.Value("binary")
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))
