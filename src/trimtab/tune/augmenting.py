"""Training examples that are changed a little, anew each time they are met, and keep their answer.

    typos      a word in five loses a letter, swaps two, or has one of a neighbouring key
    case       all letters small, or all large
    words      a word in ten is left out
    crop       a part of at least 0.7 of the picture, in its full size; moves what is in it
    flip       left for right; moves
    rotation   by up to 15 degrees; moves
    colour     brightness, contrast and saturation by up to a fifth
    blur       by a Gaussian of 0.1 to 2 pixels
    grain      normal noise, of a twentieth of the scale
    erasing    a rectangle of 2 to 20 % of the picture becomes black
    hiss       white noise, 10 to 40 dB below the recording
    gain       6 dB softer to 6 dB louder
    pitch      two semitones down to two up
    tempo      a tenth slower to a tenth faster; moves
    shift      in time, by up to a tenth, around the end; moves

Pictures are changed by Kornia, recordings by audiomentations, texts as the probe of robustness
changes them (`evaluate.perturb`). Each change befalls one example in two. What is drawn follows
from the run's seed, the epoch and the row alone: a run that goes on meets the same ones, whichever
process makes the batch.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trimtab.core.errors import InputError, nearest
from trimtab.data import media
from trimtab.evaluate import perturb
from trimtab.tasks.task import Task

if TYPE_CHECKING:
    from trimtab.tune.session import Session

SHARE = 0.5  # of the examples that each change befalls
_LEFT_OUT = 0.1  # of the words
_WORD = re.compile(r"\S+\s*")


@dataclass(frozen=True)
class Change:
    """Of cells of one `kind`; `moves`: what a picture shows, or a recording tells, comes to lie
    elsewhere in it."""

    kind: str
    of: Callable[[Any, random.Random], Any]
    moves: bool = False


# Texts


def _typos(text: str, drawn: random.Random) -> str:
    return perturb.text(text, drawn.choice(list(perturb.TYPOS)), drawn)


def _case(text: str, drawn: random.Random) -> str:
    return perturb.text(text, drawn.choice(list(perturb.CASES)), drawn)


def _words(text: str, drawn: random.Random) -> str:
    words = _WORD.findall(text)
    kept = [word for word in words if drawn.random() >= _LEFT_OUT]
    return "".join(kept or words).strip()


# Pictures


def _picture(
    name: str, arguments: Mapping[str, Any], cell: media.Cell, drawn: random.Random
) -> bytes:
    """By Kornia's augmentation of this name; the file is a bitmap, which is written fastest."""
    from PIL import Image

    pixels = torch.from_numpy(np.asarray(media.image(cell)).copy()).movedim(-1, 0)[None]
    x = pixels.float() / 255
    if name == "RandomResizedCrop":
        arguments = {**arguments, "size": tuple(x.shape[-2:])}
    with _drawn(drawn.getrandbits(31)):
        changed: Tensor = getattr(_library("kornia.augmentation"), name)(**arguments, p=1.0)(x)
    made = (changed[0].clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)
    out = io.BytesIO()
    Image.fromarray(made.numpy()).save(out, "BMP")
    return out.getvalue()


# Recordings


def _recording(
    name: str, arguments: Mapping[str, Any], cell: media.Cell, drawn: random.Random
) -> bytes:
    """By audiomentations' transform of this name; the file is a WAV of fp32."""
    import soundfile

    rate = media.sampling_rate(cell)
    wave = media.audio(cell, rate)
    with _drawn(drawn.getrandbits(31)):
        changed = getattr(_library("audiomentations"), name)(**arguments, p=1.0)(wave, rate)
    out = io.BytesIO()
    soundfile.write(out, np.clip(changed, -1, 1), rate, format="WAV", subtype="FLOAT")
    return out.getvalue()


@contextlib.contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """The libraries draw from everybody's generators, which training must find as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)  # not those of accelerators
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@functools.cache
def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.partition(".")[0]
        raise InputError(
            f"--augment works with {package}, which is not installed: pip install "
            "'trimtab[augment]'"
        ) from None


def _of_pictures(name: str, moves: bool = False, **arguments: Any) -> Change:
    return Change("image", functools.partial(_picture, name, arguments), moves)


def _of_recordings(name: str, moves: bool = False, **arguments: Any) -> Change:
    return Change("audio", functools.partial(_recording, name, arguments), moves)


_SLOWER = {"leave_length_unchanged": False}  # nothing is cut off
CHANGES: Mapping[str, Change] = {
    "typos": Change("text", _typos),
    "case": Change("text", _case),
    "words": Change("text", _words),
    "crop": _of_pictures("RandomResizedCrop", moves=True, scale=(0.7, 1.0)),
    "flip": _of_pictures("RandomHorizontalFlip", moves=True),
    "rotation": _of_pictures("RandomRotation", moves=True, degrees=15.0),
    "colour": _of_pictures("ColorJiggle", brightness=0.2, contrast=0.2, saturation=0.2),
    "blur": _of_pictures("RandomGaussianBlur", kernel_size=(5, 5), sigma=(0.1, 2.0)),
    "grain": _of_pictures("RandomGaussianNoise", std=0.05),
    "erasing": _of_pictures("RandomErasing", scale=(0.02, 0.2)),
    "hiss": _of_recordings("AddGaussianSNR", min_snr_db=10.0, max_snr_db=40.0),
    "gain": _of_recordings("Gain", min_gain_db=-6.0, max_gain_db=6.0),
    "pitch": _of_recordings("PitchShift", min_semitones=-2.0, max_semitones=2.0),
    "tempo": _of_recordings("TimeStretch", moves=True, min_rate=0.9, max_rate=1.1, **_SLOWER),
    "shift": _of_recordings("Shift", moves=True, min_shift=-0.1, max_shift=0.1),
}


def columns(task: Task) -> dict[str, str]:
    """Those of the task that may be changed, and what each holds."""
    return {one.name: one.kind for one in task.columns if one.name in task.varied}


def room(wanted: Sequence[str]) -> float:
    """How many times as long as the longest text a changed one may be: "FINE" and "fnie" are more
    tokens than "fine"."""
    return 2.0 if any(CHANGES[name].kind == "text" for name in wanted) else 1.0


def refuse(task: Task, wanted: Sequence[str]) -> None:
    """Changes that there are not, or that this task's data cannot be given: an `InputError`."""
    held = set(columns(task).values())
    fitting = [
        name
        for name, one in CHANGES.items()
        if one.kind in held and not (one.moves and task.placed)
    ]
    for name in wanted:
        change = CHANGES.get(name)
        if change is None:
            raise InputError(f"--augment {name}: no such change; {nearest(name, CHANGES)}")
        if name in fitting:
            _ready(change)
            continue
        told = f"--augment {name}: {task.name} "
        if change.kind in held:
            told += "has answers that follow places or an order, which this would move"
        else:
            told += f"trains on no {change.kind} that could be changed"
        known = f"there are {', '.join(fitting)}" if fitting else "there is none for it"
        raise InputError(f"{told}; {known}")


def _ready(change: Change) -> None:
    """The library is asked for before anything is computed."""
    if change.kind == "image":
        _library("kornia.augmentation")
    elif change.kind == "audio":
        _library("audiomentations")


class Augmented(Dataset):
    """Examples of `rows`, changed: index i of n in epoch e is i + e n, and each time another one.

    `examples` are those of the unchanged rows, in their order, whose lengths batches are made by.
    """

    def __init__(self, session: Session, rows: Any, examples: Sequence[Any], order: Any) -> None:
        self.session, self.rows, self.examples = session, rows, examples
        self.places = [int(place) for place in order]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        drawn = [divmod(index, len(self)) for index in indices]
        places = [self.places[i] for _, i in drawn]
        config = self.session.config
        names = [
            f"{config.seed} {epoch} {place}"
            for (epoch, _), place in zip(drawn, places, strict=True)
        ]
        changed = altered(self.rows.select(places), self.session.task, config.augment, names)
        encoded = self.session.encode(changed, training=True)
        found: list[Any] = [None] * len(places)
        for example, place in zip(encoded.examples, encoded.order, strict=True):
            found[int(place)] = {
                key: media.Once(cell) if isinstance(cell, bytes) else cell
                for key, cell in example.items()
            }
        for example, (_, i) in zip(found, drawn, strict=True):
            plain = self.examples[i]  # weights are of all rows, not of these
            example.update({key: plain[key] for key in ("labels", "weights") if key in plain})
        return found

    def like(self, examples: Sequence[Any]) -> list[Any]:
        """These of its examples, changed."""
        known = {id(example): i for i, example in enumerate(self.examples)}
        return self.__getitems__([known[id(example)] for example in examples])


def altered(rows: Any, task: Task, wanted: Sequence[str], seeds: Sequence[str]) -> Any:
    """The rows with the changes that are drawn from each one's seed."""
    import datasets

    table = {name: list(rows[name]) for name in rows.column_names}
    features = dict(rows.features)
    for column, kind in columns(task).items():
        fitting = [name for name in CHANGES if name in wanted and CHANGES[name].kind == kind]
        if column not in table or not fitting:
            continue
        cells = [
            _altered(cell, fitting, seed) for cell, seed in zip(table[column], seeds, strict=True)
        ]
        if kind != "text":  # files where they lie, and files in memory
            cells = [_bytes(cell) for cell in cells]
            features[column] = datasets.Value("binary")
        table[column] = cells
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))


def _altered(cell: Any, wanted: Sequence[str], seed: str) -> Any:
    for name in wanted:
        drawn = random.Random(f"{seed} {name}")
        if cell and drawn.random() < SHARE:
            cell = CHANGES[name].of(cell, drawn) or cell
    return cell


def _bytes(cell: media.Cell) -> bytes:
    if isinstance(cell, bytes):
        return cell
    with open(cell, "rb") as file:
        return file.read()
