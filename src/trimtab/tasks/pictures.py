"""Pictures as models take them: decoded, resized, kept as bytes, and normalised batch by batch.

A model's image processor resizes a picture p to bytes u, and then scales and normalises:

    x = (f u - mean) / deviation

Decoding and resizing are what takes long, and u is a quarter of x; so u is kept while there is
room, one plane of it where a picture is grey, and x is computed for each batch. Whether a processor
is of this kind is found by trying it on one picture; the pictures of others are not kept.

Always Pillow's resizing, so that a run gives the same numbers whether torchvision is there or not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.data import media
from trimtab.tasks import models
from trimtab.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset

ROOM = 512 * 2**20
"""Bytes of pictures that are kept: 10,000 grey or 3,500 coloured ones of 224 by 224."""

_PLANES = 3
_CLOSE = 1e-4  # what rounding may do to normalised values
_CONFIGURATIONS = ("preprocessor_config.json", "processor_config.json")


class Pictures:
    """An image processor and the pictures that it has resized.

    The first pictures stay: an epoch meets each of them once, so that a memory of the last ones
    would never hold the one that is asked for. `dtype` is what the model computes in, `padded`
    tells whether pictures of a batch may differ in size.
    """

    masks = False  # whether the model asks which pixels are the picture's

    def __init__(self, processor: Any, *, padded: bool = False, room: int = ROOM) -> None:
        self.processor, self.room, self.dtype = processor, room, torch.float32
        self._unpadded = {"do_pad": False} if padded else {}
        self._kept: dict[Hashable, np.ndarray] = {}
        self._sizes: dict[Any, tuple[int, int]] = {}
        self._scaling = _scaling(processor)
        self._plain = self._scales_last()

    def batch(self, cells: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """(n, channels, height, width) pixels, and (n, height, width) ones where they are a
        picture's: smaller ones lie in the upper left corner."""
        found = [self._one(cell) for cell in cells]
        height, width = (max(one.shape[side] for one in found) for side in (1, 2))
        planes = _PLANES if self._plain else found[0].shape[0]
        pixels = torch.zeros(len(found), planes, height, width)
        mask = torch.zeros(len(found), height, width, dtype=torch.long)
        for i, one in enumerate(found):
            self._place(one, pixels[i, :, : one.shape[1], : one.shape[2]])
            mask[i, : one.shape[1], : one.shape[2]] = 1
        return pixels.to(self.dtype), mask

    def size(self, cell: Any) -> tuple[int, int]:
        """(height, width) of the picture itself."""
        if isinstance(cell, media.Once):
            return media.size(cell)[::-1]
        if cell not in self._sizes:
            self._sizes[cell] = media.size(cell)[::-1]
        return self._sizes[cell]

    def _one(self, cell: Any) -> np.ndarray:
        """(planes, height, width): resized bytes, or the pixels themselves."""
        if not self._plain:
            return self._made(media.image(cell))
        if isinstance(cell, media.Once):
            return self._resized(cell)
        return self.keep(("image", cell), lambda: self._resized(cell))

    def _place(self, one: np.ndarray, out: Tensor) -> None:
        """In place: of large pictures, passes over memory are what takes time."""
        out.copy_(torch.from_numpy(one))
        if self._plain:
            gain, shift = self._scaling
            out.mul_(gain).add_(shift)

    def keep(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` gives, which stays under this key while there is room."""
        if key in self._kept:
            return self._kept[key]
        made = make()
        if made.nbytes <= self.room:
            self.room -= made.nbytes
            self._kept[key] = made
        return made

    def _resized(self, cell: Any) -> np.ndarray:
        resized = self._made(media.image(cell), do_rescale=False, do_normalize=False)
        grey = (resized == resized[:1]).all()
        return np.ascontiguousarray(resized[:1]) if grey else resized

    def _made(self, picture: Any, **options: Any) -> np.ndarray:
        """What the processor makes of it: (channels, height, width)."""
        made = self.processor([picture], **options, **self._unpadded)
        return np.asarray(made["pixel_values"][0])

    def _scales_last(self) -> bool:
        """Whether the equation above is what the processor does."""
        from PIL import Image

        values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(values)
        resized = self._made(picture, do_rescale=False, do_normalize=False)
        if resized.dtype != np.uint8:
            return False
        gain, shift = self._scaling
        whole, own = self._made(picture), torch.from_numpy(resized) * gain + shift
        return whole.shape == own.shape and bool(np.abs(own.numpy() - whole).max() < _CLOSE)


def _scaling(processor: Any) -> tuple[Tensor, Tensor]:
    """f / deviation and -mean / deviation, (3, 1, 1) each."""
    factor = processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
    mean, deviation = torch.zeros(_PLANES), torch.ones(_PLANES)
    if getattr(processor, "do_normalize", False):
        mean, deviation = mean + _of(processor.image_mean), deviation * _of(processor.image_std)
    return (factor / deviation).view(-1, 1, 1), (-mean / deviation).view(-1, 1, 1)


def _of(given: Any) -> Tensor:
    return torch.tensor(given, dtype=torch.float32)


@dataclass(frozen=True, kw_only=True)
class PictureTask(Task):
    """`size`: pixels of the (shorter) side that the model sees; `mean` and `deviation`: of pixels
    from 0 to 1, by channel. Left out, they are the checkpoint's own.
    """

    size: int | None = None
    mean: Sequence[float] | None = None
    deviation: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise InputError(f"{self.name}: size is a number of pixels, not {self.size!r}")
        for option in ("mean", "deviation"):
            given = getattr(self, option)
            if given is not None and not _channels(given):
                raise InputError(
                    f"{self.name}: {option} is a number for each channel, such as "
                    f"{option}=[0.5,0.5,0.5], not {given!r}"
                )

    def _processor(self, model: str, *, padded: bool = False) -> Pictures:
        processor = _loaded(model, told=self.mean is not None and self.deviation is not None)
        if self.size is not None:
            for key in ("size", "crop_size"):
                if getattr(processor, key, None):
                    setattr(processor, key, _scaled(getattr(processor, key), self.size))
        for key, given in (("image_mean", self.mean), ("image_std", self.deviation)):
            if given is not None:
                processor.do_normalize = True
                setattr(processor, key, [float(one) for one in given])
        return Pictures(processor, padded=padded)

    def shown(self, rows: Dataset, index: int) -> str:
        return named(rows["image"][index], index)


def named(cell: Any, index: int) -> str:
    """A file by its path; what has none, by its place."""
    return cell if isinstance(cell, str) else f"row {index + 1}"


def _channels(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in given
    )


def _scaled(size: Any, pixels: int) -> dict[str, int]:
    """The same sides, the shorter of them this long."""
    given = {key: value for key, value in dict(size).items() if value is not None}
    shortest = min(given.values())
    return {key: round(value * pixels / shortest) for key, value in given.items()}


def _loaded(model: str, *, told: bool) -> Any:
    """The checkpoint's image processor. For a folder without one, that of its kind of model, if it
    was told how pixels are normalised: a wrong guess would cost accuracy that nobody misses."""
    folder = Path(models.resolve(model))
    if not folder.is_dir() or any((folder / name).exists() for name in _CONFIGURATIONS):
        return models.load_processor("AutoImageProcessor", model, backend="pil")
    made = _of_kind(model)
    if not told:
        raise InputError(
            f"model {model!r} has no preprocessor_config.json to tell how it takes pictures: put "
            "it there, or give the mean and deviation of pixels (here ImageNet's): --task-arg "
            "mean=[0.485,0.456,0.406] --task-arg deviation=[0.229,0.224,0.225]"
        )
    return made


def _of_kind(model: str) -> Any:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    config, known = models.configuration(model), cast(Any, IMAGE_PROCESSOR_MAPPING)
    try:
        made = known[type(config)]["pil"]()
    except KeyError:
        raise InputError(
            f"model {model!r} does not read pictures: nothing is known that would prepare them "
            f"for models of its kind ({config.model_type})"
        ) from None
    pixels = getattr(config, "image_size", None)
    if isinstance(pixels, int):
        made.size = _scaled(made.size, pixels)
    return made


# Batch norms


class _Held(nn.modules.batchnorm._BatchNorm):
    """A batch norm that computes with the statistics it has, while training too. Otherwise every
    batch would move those of the frozen base, and no adapter holds them."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class _Held1d(_Held, nn.BatchNorm1d):
    pass


class _Held2d(_Held, nn.BatchNorm2d):
    pass


_HELD: dict[type, type] = {nn.BatchNorm1d: _Held1d, nn.BatchNorm2d: _Held2d}


def hold_statistics(model: nn.Module) -> None:
    """Every batch norm of the model that has running statistics, from now on."""
    for module in model.modules():
        if type(module) in _HELD and module.track_running_stats:  # type: ignore[union-attr]
            module.__class__ = _HELD[type(module)]
            module.track_running_stats = False
