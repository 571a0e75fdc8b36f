"""Clips: moving pictures of several kinds of files, and which of their frames are looked at.

A cell is the absolute path of a file or folder, or the bytes of a file, as of `media`:

    animated GIF, WebP, PNG         by Pillow; how long each frame stays is not looked at
    .npy, .npz                      an array (frames, height, width, 3) of bytes, no pickle
    a folder of numbered pictures   in the order of their numbers
    MP4, WebM and their like        by PyAV, where it is installed

Of n frames m are looked at, one from the middle of each of m equal parts, as temporal segment
networks do (Wang et al. 2016, arXiv:1608.00859):

    frame i = ⌊(i + 1/2) n / m⌋
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import InputError
from trimtab.data import media
from trimtab.data.cells import Kind, Places

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_NUMPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"  # what files of arrays begin with
_PICTURES = media.SUFFIXES["image"]
_LEAST = 2  # frames: one is a picture


def sampled(n: int, count: int) -> list[int]:
    """Which of n frames are looked at."""
    return [(2 * i + 1) * n // (2 * count) for i in range(count)]


def frames(cell: media.Cell, count: int) -> list[Image]:
    """So many of the clip's frames in RGB, in order."""
    with _reader(cell) as (n, read):
        chosen = sampled(n, count)
        found = dict(zip(sorted(set(chosen)), read(set(chosen)), strict=True))
    return [found[i] for i in chosen]


def length(cell: media.Cell) -> int:
    """How many frames the clip has."""
    with _reader(cell) as (n, _):
        return n


def read_clip(name: str, value: Any, places: Places = ()) -> media.Cell:
    cell, what = media.find(name, value, places, folders=True), media.told(name, value)
    with media.faults(what, "a clip"), _reader(cell) as (n, read):
        sizes = {one.size for one in read(range(n))}
    if n < _LEAST:
        raise ValueError(f"{what} has {n} frame{'s' * (n != 1)}: a clip has several")
    if len(sizes) > 1:
        (a, b), (c, d) = sorted(sizes)[:2]
        raise ValueError(f"{what} has frames of several sizes: {a} × {b} and {c} × {d} pixels")
    return cell


# Kinds of files: each is the number of frames, and what reads those of given places in order

_Read = Callable[[Collection[int]], Iterator["Image"]]


@contextmanager
def _reader(cell: media.Cell) -> Iterator[tuple[int, _Read]]:
    head = cell[:8] if isinstance(cell, bytes) else _head(Path(cell))
    if head is None:
        yield _folder(Path(str(cell)))
    elif head.startswith((_NUMPY, _ZIP)):
        yield _array(cell)
    elif _is_picture(cell):
        with media.pillow(cell) as opened:
            yield _animation(opened)
    else:
        yield _film(cell)


def _head(path: Path) -> bytes | None:
    """The first bytes of a file; nothing of a folder."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        return file.read(8)


def _is_picture(cell: media.Cell) -> bool:
    """By its suffix, or where it has none, by whether Pillow knows it."""
    if isinstance(cell, str):
        return Path(cell).suffix.lower() in (*_PICTURES, ".apng")
    from PIL import UnidentifiedImageError

    try:
        with media.pillow(cell):
            return True
    except UnidentifiedImageError:
        return False


def _animation(opened: Any) -> tuple[int, _Read]:
    def read(chosen: Collection[int]) -> Iterator[Image]:
        for i in sorted(chosen):
            opened.seek(i)
            yield opened.convert("RGB")

    return getattr(opened, "n_frames", 1), read


def _array(cell: media.Cell) -> tuple[int, _Read]:
    from PIL import Image as Module

    found = _loaded(cell)
    if found.ndim != 4 or found.shape[-1] != 3 or found.dtype.name != "uint8":
        shape = " × ".join(map(str, found.shape))
        raise ValueError(
            f"an array of {shape} {found.dtype}, where (frames, height, width, 3) of uint8 is asked"
        )

    def read(chosen: Collection[int]) -> Iterator[Image]:
        for i in sorted(chosen):
            yield Module.fromarray(found[i])

    return len(found), read


def _loaded(cell: media.Cell) -> np.ndarray:
    import numpy as np

    with io.BytesIO(cell) if isinstance(cell, bytes) else Path(cell).open("rb") as file:
        made = np.load(file, allow_pickle=False)
        if isinstance(made, np.ndarray):
            return made
        if len(made.files) != 1:
            raise ValueError(f"{len(made.files)} arrays, where one is asked")
        return made[made.files[0]]


def _folder(path: Path) -> tuple[int, _Read]:
    """Pictures in the order of the last number in their names."""
    files = [one for one in path.iterdir() if one.suffix.lower() in _PICTURES]
    numbered = [(int(number[-1]), one) for one in files if (number := re.findall(r"\d+", one.stem))]
    if not files or len(numbered) < len(files):
        other = set(files) - {one for _, one in numbered}
        which = f"{min(other).name} has no number" if other else "it has no pictures"
        raise ValueError(f"a folder of numbered pictures is asked, and {which}")
    ordered = [one for _, one in sorted(numbered)]

    def read(chosen: Collection[int]) -> Iterator[Image]:
        for i in sorted(chosen):
            yield media.image(str(ordered[i]))

    return len(ordered), read


def _film(cell: media.Cell) -> tuple[int, _Read]:
    """Every frame is decoded to be counted: headers often do not say how many there are."""

    def all_of() -> Iterator[Image]:
        with _av().open(io.BytesIO(cell) if isinstance(cell, bytes) else cell) as container:
            for one in container.decode(video=0):
                yield one.to_image()

    def read(chosen: Collection[int]) -> Iterator[Image]:
        yield from (one for i, one in enumerate(all_of()) if i in chosen)

    return sum(1 for _ in all_of()), read


def _av() -> Any:
    try:
        import av  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        raise InputError(
            "films (MP4, WebM, AVI, …) are read with PyAV: pip install av. Without it, give clips "
            "as animated GIF or WebP, as .npy arrays, or as folders of numbered pictures"
        ) from None
    return av


def content(cell: media.Cell) -> Hashable:
    """What is in a file or folder, so that a copy under another name is known again."""
    if isinstance(cell, bytes) or not Path(cell).is_dir():
        return media.content(cell)
    found = hashlib.sha256()
    for one in sorted(Path(cell).iterdir()):
        found.update(one.read_bytes() if one.is_file() else b"")
    return found.digest()


KINDS = {"video": Kind(read_clip, media.path_or_bytes, empty=None, key=content, slow=True)}
