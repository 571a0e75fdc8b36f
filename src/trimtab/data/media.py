"""Images and recordings: what a cell names, whether it is sound, and what is in it.

A cell is the absolute path of a file, or the bytes themselves where a table embeds them; never the
decoded picture, which would not fit into memory a thousand times. `image` and `audio` decode a cell
beside training. Every cell is decoded once when it is read, so that a broken file is found before
the first step and not after hours.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import InputError
from trimtab.data.cells import Kind, Places, of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Cell = str | bytes


class Once(bytes):
    """A file that was made for one batch: nothing of it is kept for the next."""


SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"),
    "video": (".npy", ".npz", ".apng", ".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm"),
    "points": (".xyz",),
}
RATES = (1_000, 768_000)  # samples in a second of what has ever been a recording
SILENCE = 1e-4  # a wave that nowhere moves further than this is 80 dB below full scale
_BLOCK = 1 << 18


def family(path: Path) -> str | None:
    """ "image", "audio", "video" or nothing, by the suffix; a GIF may be either of two."""
    return next((kind for kind, known in SUFFIXES.items() if path.suffix.lower() in known), None)


# Decoding


def image(cell: Cell) -> Image:
    """The picture in RGB, upright; what is transparent is white."""
    from PIL import ImageOps

    with pillow(cell) as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            return _on_white(upright.convert("RGBA"))
        if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
            return _eight_bits(upright)
        return upright.convert("RGB")


def size(cell: Cell) -> tuple[int, int]:
    """Width and height of the upright picture, from the file's header."""
    with pillow(cell) as opened:
        turned = opened.getexif().get(0x0112, 1) >= 5
        return opened.size[::-1] if turned else opened.size


def mode(cell: Cell) -> str:
    """Pillow's name for what a pixel holds."""
    with pillow(cell) as opened:
        return opened.mode


def mask(cell: Cell) -> np.ndarray:
    """A label image: (height, width) whole numbers, one class each."""
    import numpy as np

    with pillow(cell) as opened:
        return np.asarray(opened).astype(np.int64)


def audio(cell: Cell, rate: int) -> np.ndarray:
    """(samples,) float32 between -1 and 1: the mean of the channels, at `rate` a second."""
    import numpy as np
    from scipy.signal import resample_poly

    with _sound(cell) as file:
        own, wave = file.samplerate, file.read(dtype="float32", always_2d=True).mean(axis=1)
    if own != rate:
        common = math.gcd(own, rate)
        wave = resample_poly(wave, rate // common, own // common)
    return np.ascontiguousarray(wave, dtype=np.float32)


def seconds(cell: Cell) -> float:
    """A recording's length, from the file's header."""
    with _sound(cell) as file:
        return file.frames / file.samplerate


def sampling_rate(cell: Cell) -> int:
    with _sound(cell) as file:
        return file.samplerate


def _on_white(picture: Image) -> Image:
    from PIL import Image as Module

    white = Module.new("RGBA", picture.size, "white")
    return Module.alpha_composite(white, picture).convert("RGB")


def _eight_bits(picture: Image) -> Image:
    """Deep grey values over their own range: Pillow would cut off all above 255."""
    import numpy as np
    from PIL import Image as Module

    values = np.asarray(picture, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255:
        values = (values - low) * (255 / (high - low))
    return Module.fromarray(values.round().astype(np.uint8)).convert("RGB")


# Reading cells


def read_image(name: str, value: Any, places: Places = ()) -> Cell:
    cell = find(name, value, places)
    refuse_broken(cell, told(name, value))
    return cell


def read_audio(name: str, value: Any, places: Places = ()) -> Cell:
    import numpy as np

    cell = find(name, value, places)
    low, high, heard = math.inf, -math.inf, 0
    with faults(told(name, value), "a recording"), _sound(cell) as file:
        rate, frames = file.samplerate, file.frames
        for block in file.blocks(_BLOCK, dtype="float32", always_2d=True):
            wave = block.mean(axis=1)
            low, high, heard = min(low, wave.min()), max(high, wave.max()), heard + len(wave)
    what = told(name, value)
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{what} claims {rate:,} samples a second, which no recording has")
    if not heard or heard < frames:
        raise ValueError(f"{what} ends after {heard:,} of {frames:,} samples")
    if not np.isfinite(low + high):
        raise ValueError(f"{what} has samples that are no numbers")
    if high - low < SILENCE:
        raise ValueError(f"{what} is silent")
    return cell


def find(name: str, value: Any, places: Places, *, folders: bool = False) -> Cell:
    """The absolute path of the file (or folder, with `folders`) that a cell names, or its bytes."""
    match value:
        case {"bytes": bytes() as data}:
            return data
        case {"path": str() as path}:
            return find(name, path, places, folders=folders)
        case bytes():
            return value
        case str():
            return _path(name, value, places, folders)
    raise ValueError(f"the {name} is a {type(value).__name__}, not the path or the bytes of a file")


def _path(name: str, given: str, places: Places, folders: bool) -> str:
    for place in places or (Path(),):
        try:
            path = (place / given.strip()).expanduser().absolute()
            if path.is_file() or (folders and path.is_dir()):
                return str(path)
        except (ValueError, OSError, RuntimeError):  # no name that a file could have
            continue
    where = places[0].absolute() if places else Path.cwd()
    raise ValueError(f"there is no file for {told(name, given)} in {where}")


def told(name: str, value: Any) -> str:
    """A cell, in a message: its name ends in what tells files apart."""
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        return f"the {name}"
    return f"the {name} {path!r}" if len(path) <= 100 else f"the {name} …{path[-99:]!r}"


def refuse_broken(cell: Cell, what: str) -> None:
    """Decode all of it; a JPEG at an eighth of its size, which reads every byte in less time."""
    with faults(what, "an image"), pillow(cell) as opened:
        opened.draft("RGB", (max(1, opened.width // 8), max(1, opened.height // 8)))
        opened.load()


@contextmanager
def faults(what: str, expected: str) -> Iterator[None]:
    """Whatever a decoder trips over, as the fault of this cell."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # decoders raise all kinds: SyntaxError, struct.error, OSError
        raise ValueError(_cannot(what, expected, error)) from error


def _cannot(what: str, expected: str, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    reason = "" if "identify" in reason or len(reason) > 100 else f" ({reason.rstrip('.')})"
    return f"{what} cannot be read as {expected}{reason}"


@contextmanager
def pillow(cell: Cell) -> Iterator[Image]:
    try:
        from PIL import Image as Module
    except ImportError as error:
        raise InputError("images are read with Pillow: pip install pillow") from error
    with Module.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell) as opened:
        yield opened


@contextmanager
def _sound(cell: Cell) -> Iterator[Any]:
    try:
        import soundfile
    except ImportError as error:
        raise InputError("recordings are read with soundfile: pip install soundfile") from error
    with soundfile.SoundFile(io.BytesIO(cell) if isinstance(cell, bytes) else cell) as opened:
        yield opened


def content(cell: Cell) -> Hashable:
    """What is in a file, so that a copy under another name is known again."""
    data = cell if isinstance(cell, bytes) else Path(cell).read_bytes()
    return hashlib.sha256(data).digest()


def path_or_bytes(cells: Sequence[Cell]) -> Any:
    return of("binary" if any(isinstance(cell, bytes) for cell in cells) else "string")(cells)


KINDS = {
    "image": Kind(read_image, path_or_bytes, empty=None, key=content, slow=True),
    "audio": Kind(read_audio, path_or_bytes, empty=None, key=content, slow=True),
}
