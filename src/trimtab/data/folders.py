"""Folders that are data: of files by class, of files beside a list of them, of images with masks.

    flowers/train/rose/1.png, flowers/test/tulip/7.png        a folder for each label
    flowers/metadata.csv with file_name, and the files        as the hub's image folders have it
    cells/images/1.png, cells/masks/1.png                     pairs of the same name

Each may lie in folders named after splits, or lie there without them. Files are images, recordings
or texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from trimtab.core.errors import InputError, nearest
from trimtab.data import media
from trimtab.data.table import Reader, Table, decode, of_rows

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAMED = ("file_name", "filename", "file")
PAIRS = {
    "image": ("images", "image", "imgs", "img", "JPEGImages"),
    "mask": ("masks", "mask", "labels", "label", "annotations", "SegmentationClass"),
}


def read_files(splits: Mapping[str, Path], readers: Mapping[str, Reader]) -> dict[str, Table]:
    """Split -> table of the files below its folder; nothing where these are no such folders."""
    for read in (_by_metadata, _pairs, _by_class):
        found = {split: read(folder, readers) for split, folder in splits.items()}
        if found["train"] is None:
            continue
        for split, table in found.items():
            if table is None:
                raise InputError(
                    f"{splits[split]} is not laid out like {splits['train']}: give it the same "
                    "folders, or move it elsewhere"
                )
        return found
    return {}


def read_flat(folder: Path) -> Table | None:
    """Every image, or every recording, in a folder: new rows without labels."""
    files = [path for path in _files(folder) if media.family(path)]
    kinds = {media.family(path) for path in files}
    if len(kinds) != 1:
        return None
    rows = [(i, (_below(path, folder),)) for i, path in enumerate(files, start=1)]
    return of_rows(str(folder), (str(kinds.pop()),), rows, unit="file", places=(folder,))


# A list of files


def _by_metadata(folder: Path, readers: Mapping[str, Reader]) -> Table | None:
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if path is None:
        return None
    table = readers[path.suffix](path.read_bytes(), str(path))
    place = next((i for i, name in enumerate(table.header) if name in NAMED), None)
    if place is None:
        raise InputError(
            f"{path} names no files: it needs a column file_name; "
            f"{nearest('file_name', table.header)}"
        )
    files = [str(name) for name in table.column(place)]
    kinds = Counter(media.family(Path(name)) or "file" for name in files)
    kind = kinds.most_common(1)[0][0] if kinds else "file"
    header = tuple(kind if i == place else name for i, name in enumerate(table.header))
    return replace(table, header=header, places=(folder,))


# Images with masks


def _pairs(folder: Path, readers: Mapping[str, Reader]) -> Table | None:
    images, masks = (_named(folder, names) for names in PAIRS.values())
    if images is None or masks is None:
        return None
    below = {path.stem: path for path in _files(masks) if media.family(path) == "image"}
    files = [path for path in _files(images) if media.family(path) == "image"]
    if not files or not below:
        return None
    rows = [
        (i, (_below(path, folder), _below(below.get(path.stem, masks / path.name), folder)))
        for i, path in enumerate(files, start=1)
    ]
    return of_rows(str(images), tuple(PAIRS), rows, unit="file", places=(folder,))


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


# A folder for each label


def _by_class(folder: Path, readers: Mapping[str, Reader]) -> Table | None:
    files = [path for path in _files(folder) if path.parent != folder and _family(path)]
    kinds = Counter(map(_family, files))
    if not kinds:
        return None
    if len(kinds) > 1:
        found = " and ".join(f"{n:,} of {kind}" for kind, n in sorted(kinds.items()))
        raise InputError(f"{folder} has files of several kinds in its folders: {found}; part them")
    (kind,) = kinds
    rows = [(i, (_below(path, folder), path.parent.name)) for i, path in enumerate(files, start=1)]
    table = of_rows(str(folder), (str(kind), "label"), rows, unit="file", places=(folder,))
    return _with_texts(table, files) if kind == "text" else table


def _family(path: Path) -> str | None:
    return media.family(path) or ("text" if path.suffix.lower() == ".txt" else None)


def _with_texts(table: Table, files: list[Path]) -> Table:
    texts = [decode(path.read_bytes()) for path in files]
    return replace(table, column=lambda i: texts if i == 0 else table.column(1))


def _below(path: Path, folder: Path) -> str:
    """The file's name as messages have it."""
    return path.relative_to(folder).as_posix()


def _files(folder: Path) -> Iterator[Path]:
    """In the order of their names, without hidden ones."""
    found = (path for path in folder.rglob("*") if path.is_file())
    inside = ((path.relative_to(folder).parts, path) for path in found)
    yield from (path for parts, path in sorted(inside) if not any(p.startswith(".") for p in parts))
