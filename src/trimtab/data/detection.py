"""Boxes around objects in the two forms that tools write: COCO's JSON, and Pascal VOC's folder.

COCO (Lin et al. 2014, arXiv:1405.0312): one file with `images`, `annotations` and `categories`;
a box is x, y, width, height. Boxes around crowds, which mark no single object, are left out.

VOC (Everingham et al. 2010): a folder `Annotations` with a file for each image, in `JPEGImages`,
and perhaps lists of names in `ImageSets/Main`. A box is its first and last pixel, counted from one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from trimtab.core.errors import InputError
from trimtab.data.table import Fault, Table, decode, of_rows

HEADER = ("image", "boxes")

# COCO


def may_be_coco(text: str) -> bool:
    return '"images"' in text and '"annotations"' in text


def is_coco(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(found.get(key), list) for key in ("images", "annotations")
    )


def read_coco(found: dict[str, Any], where: str) -> Table:
    """A row for each image, in the file's order."""
    try:
        names = {one["id"]: one["name"] for one in found.get("categories", ())}
        images = {one["id"]: one["file_name"] for one in found["images"]}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where}: each of COCO's images has an id and a file_name, each category an id and a "
            f"name; one has no {error}"
        ) from error
    boxes: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
    faults = []
    for place, one in enumerate(found["annotations"], start=1):
        reason = _misplaced(one, boxes, names)
        if reason:
            faults.append(Fault(place, f"annotation {place} {reason}"))
        elif not one.get("iscrowd"):
            label = names[one["category_id"]]
            boxes[one["image_id"]].append({"box": one.get("bbox"), "label": label})
    rows = [(i, (images[key], boxes[key])) for i, key in enumerate(images, start=1)]
    names = [str(name) for name in images.values()]
    return of_rows(where, HEADER, rows, faults, unit="image", names=names)


def _misplaced(one: Any, boxes: dict[Any, Any], names: dict[Any, str]) -> str:
    if not isinstance(one, dict):
        return "is no object"
    for key, known, what in (("image_id", boxes, "image"), ("category_id", names, "category")):
        if not isinstance(one.get(key), int | str) or one[key] not in known:
            return f"is of the {what} {one.get(key)!r}, which the file does not list"
    return ""


def beside(path: Path) -> Iterator[Path]:
    """Where the images of a COCO file may lie, beside its own folder: `images`, and for
    `annotations/instances_val2017.json` the folders `val2017` and `images/val2017`."""
    if path.suffix.lower() != ".json":
        return
    split = re.split(r"[_.]", path.stem)[-1]
    for folder in (path.parent, path.parent.parent):
        for name in ("images", split, f"images/{split}"):
            if (folder / name).is_dir():
                yield folder / name


# Pascal VOC


def is_voc(folder: Path) -> bool:
    annotations = folder / "Annotations"
    return annotations.is_dir() and any(annotations.glob("*.xml"))


def read_voc(folder: Path) -> dict[str, Table]:
    """Split -> table: of `ImageSets/Main` where it lists train, else all is `train`."""
    annotations, images = folder / "Annotations", folder / "JPEGImages"
    places = (images, folder / "images", folder)
    lists = folder / "ImageSets" / "Main"
    if not (lists / "train.txt").is_file():
        stems = sorted(path.stem for path in annotations.glob("*.xml"))
        return {"train": _table(annotations, stems, str(annotations), places, "file")}
    return {
        split: _table(annotations, _listed(lists / name), str(lists / name), places)
        for split, name in (("train", "train.txt"), ("validation", "val.txt"), ("test", "test.txt"))
        if (lists / name).is_file()
    }


def _listed(path: Path) -> list[str]:
    """The names of images in a list; lists of one class have 1 or -1 after each."""
    return [line.split()[0] for line in decode(path.read_bytes()).splitlines() if line.strip()]


def _table(
    annotations: Path, stems: list[str], where: str, places: tuple[Path, ...], unit: str = "line"
) -> Table:
    if not stems:
        raise InputError(f"{where} lists no images")
    rows, names, faults = [], [], []
    for line, stem in enumerate(stems, start=1):
        try:
            rows.append((line, _annotation(annotations / f"{stem}.xml")))
            names.append(f"{stem}.xml")
        except ValueError as error:
            faults.append(Fault(line, f"{stem}.xml: {error}"))
    return of_rows(where, HEADER, rows, faults, places=places, unit=unit, names=names)


def _annotation(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """The image's file and its boxes."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"there is no such file in {path.parent}") from None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ValueError(f"no readable XML ({error})") from error
    name = (root.findtext("filename") or "").strip() or f"{path.stem}.jpg"
    return name, [_object(one) for one in root.iter("object")]


def _object(one: ElementTree.Element) -> dict[str, Any]:
    sides = [one.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(side or "") for side in sides)
    except ValueError:
        raise ValueError(f"the bndbox of an object lacks a number: {sides}") from None
    if right <= left or bottom <= top:
        raise ValueError(f"a box has no area: {[left, top, right, bottom]}")
    box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    return {"box": box, "label": (one.findtext("name") or "").strip()}
