"""What lies where in an image: boxes with labels, and masks with a class at each pixel.

A box is [x, y, width, height] in pixels from the upper left corner, as COCO has it (Lin et al.
2014, arXiv:1405.0312). A cell is {"boxes": [[x, y, width, height], …], "labels": [name, …]}; in
files it may also be a list of {"box", "label"}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.data import media
from trimtab.data.cells import Kind, Places, label, listed, number, written

MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
ROUNDING = 1.0  # pixels by which tools that count from one, or round up, go beyond the image

Cell = dict[str, list[Any]]
Box = list[float]


def read_boxes(name: str, value: Any, places: Places = ()) -> Cell:
    pairs = [
        (_box(place, box), _label(place, called))
        for place, (box, called) in enumerate(_pairs(name, value), start=1)
    ]
    return {"boxes": [box for box, _ in pairs], "labels": [called for _, called in pairs]}


def _pairs(name: str, value: Any) -> list[tuple[Any, Any]]:
    """Each box with its label, as given: in two lists, or in a list of objects."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = written(name, value)
    if isinstance(value, dict):
        boxes, labels = _either(value, "boxes", "bbox", "box"), _either(value, "labels", "category")
        if not isinstance(boxes, list | tuple) or not isinstance(labels, list | tuple):
            raise ValueError(f'the {name} have no lists "boxes" and "labels"')
        if len(boxes) != len(labels):
            raise ValueError(f"the {name} are {len(boxes)} boxes with {len(labels)} labels")
        return list(zip(boxes, labels, strict=True))
    given = listed(name, value, lambda text: [text] if text.strip() else [])
    return [_pair(place, one) for place, one in enumerate(given, start=1)]


def _pair(place: int, given: Any) -> tuple[Any, Any]:
    if not isinstance(given, dict):
        raise ValueError(f'box {place} is a {type(given).__name__}, not {{"box": …, "label": …}}')
    return _either(given, "box", "bbox"), _either(given, "label", "category")


def _either(given: dict[str, Any], *names: str) -> Any:
    return next((given[name] for name in names if given.get(name) is not None), None)


def _box(place: int, sides: Any) -> Box:
    if not isinstance(sides, list | tuple) or len(sides) != 4:
        raise ValueError(f"box {place} is not given as [x, y, width, height]")
    x, y, width, height = (number(f"side of box {place}", side) for side in sides)
    if width <= 0 or height <= 0:
        raise ValueError(f"box {place} has no area: {_shown([x, y, width, height])}")
    return [x, y, width, height]


def _label(place: int, called: Any) -> str:
    found = "" if called is None else label(f"label of box {place}", called)
    if not found:
        raise ValueError(f"box {place} has no label")
    return found


def inside(name: str, cell: Cell, image: media.Cell) -> Cell:
    """The boxes within their image; one that goes beyond by a pixel at most is cut."""
    width, height = media.size(image)
    boxes = [_cut(place, box, width, height) for place, box in enumerate(cell["boxes"], start=1)]
    return {**cell, "boxes": boxes}


def _cut(place: int, box: Box, width: int, height: int) -> Box:
    x, y, w, h = box
    beyond = max(-x, -y, x + w - width, y + h - height)
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if beyond > ROUNDING or right <= left or bottom <= top:
        raise ValueError(
            f"box {place}, {_shown(box)}, reaches beyond its image of {width} × {height} pixels"
        )
    return box if beyond <= 0 else [left, top, right - left, bottom - top]


def _shown(box: Box) -> str:
    return f"[{', '.join(f'{side:g}' for side in box)}]"


def read_mask(name: str, value: Any, places: Places = ()) -> media.Cell:
    cell, what = media.find(name, value, places), media.told(name, value)
    media.refuse_broken(cell, what)
    mode = media.mode(cell)
    if mode not in MASK_MODES:
        raise ValueError(
            f"{what} has colours ({mode}), where the number of a class is needed at each pixel"
        )
    return cell


def as_large(name: str, mask: media.Cell, image: media.Cell) -> media.Cell:
    found, expected = (" × ".join(map(str, media.size(cell))) for cell in (mask, image))
    if found != expected:
        raise ValueError(f"the {name} has {found} pixels, its image {expected}")
    return mask


def in_two_lists(cells: Sequence[Cell]) -> Any:
    import datasets

    box = datasets.List(datasets.Value("float64"))
    return {"boxes": datasets.List(box), "labels": datasets.List(datasets.Value("string"))}


KINDS = {
    "boxes": Kind(
        read_boxes,
        in_two_lists,
        empty={"boxes": [], "labels": []},
        may_be_empty=True,
        labels=lambda cell: tuple(dict.fromkeys(cell["labels"])),
        beside="image",
        agree=inside,
    ),
    "mask": Kind(
        read_mask, media.path_or_bytes, empty=None, beside="image", agree=as_large, slow=True
    ),
}
