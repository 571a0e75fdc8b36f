"""What `--data` may name: a file, a folder, or a data set on the hub -> its splits' tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.core.errors import InputError, nearest
from trimtab.data import detection, folders
from trimtab.data.formats import READERS, SEQUENCES, read_dataset, read_file
from trimtab.data.table import Table

if TYPE_CHECKING:
    import datasets

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}

# `emerging.dev`, `wnut17train`, `instances_val2017`: a name that ends in a split's
_ENDS_IN_SPLIT = re.compile(r"(?:^|[^a-z])(train|validation|valid|val|dev|test)\d*$")

_COCO_BESIDE = "_annotations.coco.json"  # as some tools export, beside the images of a split

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")


def read_source(source: str) -> dict[str, Table]:
    """Split -> table. `train` is always there; a single file is all `train`.

    Raises `InputError` where nothing of this name can be read.
    """
    if not source.strip():
        raise InputError("no data is named; give a file, a folder or a hub name")
    path = Path(source).expanduser()
    if path.is_file():
        return {"train": read_file(path)}
    if path.is_dir():
        return _read_folder(path)
    if HUB_NAME.fullmatch(source) and path.suffix.lower() not in READERS:
        return _read_hub(source)
    raise InputError(missing(path))


def missing(path: Path) -> str:
    """The message for a path that leads nowhere: what lies beside it that could be read."""
    if not path.parent.is_dir():
        return f"{str(path)!r} does not exist, nor does the folder {str(path.parent)!r}"
    beside = sorted(
        one.name
        for one in path.parent.iterdir()
        if one.suffix.lower() in READERS or (one.is_dir() and not one.name.startswith("."))
    )
    return f"{str(path)!r}: no file or folder of this name; {nearest(path.name, beside)}"


def _read_folder(folder: Path) -> dict[str, Table]:
    import datasets

    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _read_by(datasets.load_from_disk, folder)
    if files := split_files(folder):
        return {split: read_file(files[split]) for split in SPLITS if split in files}
    if detection.is_voc(folder):
        return detection.read_voc(folder)
    if tables := folders.read_files(_split_folders(folder), READERS):
        return tables
    if files := _split_files(folder, sorted(folder.glob("*.txt"))):
        return {split: read_file(files[split]) for split in SPLITS if split in files}
    if any(_is_table(path) for path in folder.rglob("*")):
        return _read_by(datasets.load_dataset, folder)  # it knows more layouts, such as shards
    raise InputError(f"{folder} holds no data that can be read, only {_contents(folder)}")


def split_files(folder: Path) -> dict[str, Path]:
    """Split -> its one file, of a folder that has such."""
    return _split_files(folder, _tables_in(folder))


def _tables_in(folder: Path) -> list[Path]:
    """Files that may be named after splits. Plain texts are not among them: beside images they are
    lists, or notes."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in READERS and path.suffix.lower() != ".txt"
    ]


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in READERS and path.suffix.lower() not in SEQUENCES


def _split_folders(folder: Path) -> dict[str, Path]:
    """Split -> its folder; where none is for training, all of the folder is."""
    found = {split: path for path in _below(folder) if (split := _split_named(path.name))}
    return found if "train" in found else {"train": folder}


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _read_by(read: Callable, folder: Path) -> dict[str, Table]:
    try:
        found = read(str(folder))
    except Exception as error:  # whatever a builder trips over
        raise InputError(
            f"{folder} cannot be read by `datasets` ({_brief(error.__cause__ or error)}); "
            f"it holds {_contents(folder)}"
        ) from error
    return _tables(found, str(folder))


def _contents(folder: Path) -> str:
    there = sorted(path.name for path in folder.iterdir())
    shown = (", ".join(there[:12]) + ", …" * (len(there) > 12)) or "nothing"
    return (
        f"{shown}; a folder needs train, validation and test files ({', '.join(READERS)}), "
        "or a folder of files for each label"
    )


def _split_files(folder: Path, files: list[Path]) -> dict[str, Path]:
    """Split -> its one file, for the files that are named after a split; else for those whose names
    end in one, and for COCO's annotations."""
    if found := _one_for_each(files, _split_named):
        if "train" not in found:
            names = ", ".join(path.name for path in found.values())
            raise InputError(f"{folder} has {names}, but no train file to learn from")
        return found
    for among in (files, _coco_files(folder)):
        try:
            found = _one_for_each(among, _ends_in_split)
        except InputError:  # shards, perhaps, which are for `datasets`
            continue
        if "train" in found:
            return found
    return {}


def _coco_files(folder: Path) -> list[Path]:
    """`annotations/instances_train2017.json` and its like, or one file in each split's folder."""
    annotations = folder / "annotations"
    instances = sorted(annotations.glob("instances_*.json")) or sorted(annotations.glob("*.json"))
    return instances or sorted(folder.glob(f"*/{_COCO_BESIDE}"))


def _one_for_each(files: list[Path], named: Callable[[str], str | None]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        split = named(path.parent.name if path.name == _COCO_BESIDE else path.stem)
        if split is None:
            continue
        if split in found:
            raise InputError(
                f"{path.parent} has two files for {split}: {found[split].name} and {path.name}; "
                "keep one"
            )
        found[split] = path
    return found


def _read_hub(source: str) -> dict[str, Table]:
    name, _, config = source.partition(":")
    try:
        found = _load_from_hub(name, config or None)
    except Exception as error:  # the network, the name, access, a configuration, a script
        raise InputError(
            f"{missing(Path(source))}. Nor could it be read from the hub: {_brief(error)}"
        ) from error
    return _tables(found, source)


def _load_from_hub(name: str, config: str | None) -> datasets.DatasetDict:
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError):
        raise
    except Exception:
        with _cache_alone():
            return datasets.load_dataset(name, config)
    return datasets.load_dataset(name, config)


@contextmanager
def _cache_alone() -> Iterator[None]:
    """Where the hub does not answer, `datasets` would retry for half a minute before it looks."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _tables(
    found: datasets.Dataset | Mapping[str, datasets.Dataset], where: str
) -> dict[str, Table]:
    splits = dict(found) if isinstance(found, Mapping) else {"train": found}
    tables = {
        split: read_dataset(data, f"{where}, split {given!r}")
        for given, data in splits.items()
        if (split := _split_named(given))
    }
    if "train" not in tables:
        raise InputError(f"{where} has no split 'train'; {nearest('train', splits)}")
    for table in tables.values():
        if not table.lines:
            raise InputError(f"{table.where}: no rows")
    return tables


def _split_named(name: str) -> str | None:
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def _ends_in_split(name: str) -> str | None:
    found = _ENDS_IN_SPLIT.search(name.lower())
    return _split_named(found[1]) if found else None


def _brief(error: BaseException) -> str:
    """The first line of a library's error, which may be a page."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= 200 else line[:199] + "…"
