"""A composition of adapters as a folder: one folder an adapter, and `composition.json`, which says
how they act together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch import nn

from trimtab.adapt import activate, detach
from trimtab.core.adapter import Adapter, carries, record
from trimtab.core.compose import Composition, order, plain, read
from trimtab.core.errors import InputError, StateError
from trimtab.store.files import read_json, write_json

CONFIG = "composition.json"
VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def write(
    model: nn.Module, composition: Composition, folder: Path, save: Callable[[str, Path], object]
) -> None:
    """Every adapter into a folder of its name, by `save`; the composition last, when all are
    there."""
    names = dict.fromkeys(order(composition))
    if not names:
        raise InputError(f"{composition} names no adapter: there is nothing to save")
    for adapter in [record(model).adapter(name) for name in names]:
        if missing := [one for one in adapter.over if one not in names]:
            raise InputError(
                f"{adapter.name!r} combines {missing[0]!r}: save them together, as Fuse"
            )
    for name in names:
        save(name, folder / name)
    write_json(
        folder / CONFIG,
        {"format": "trimtab", "version": VERSION, "composition": plain(composition)},
    )


def load(
    model: nn.Module, folder: Path, load_one: Callable[[str, Path], Adapter]
) -> tuple[Adapter, ...]:
    """All adapters of a composition, active as it says; after an error the model is as it was."""
    composition = _read(folder)
    before = record(model).switch.composition if carries(model) else None
    if carries(model) and record(model).switch.merged:
        raise StateError("the model is merged: unmerge it before loading other adapters")
    loaded: list[Adapter] = []
    try:
        for name in dict.fromkeys(order(composition)):
            loaded.append(load_one(name, folder / name))
        activate(model, composition)
    except BaseException:
        for adapter in reversed(loaded):
            detach(model, adapter.name)
        if carries(model):
            activate(model, before)
        raise
    return tuple(loaded)


def _read(folder: Path) -> Composition:
    where = folder / CONFIG
    data = read_json(where)
    version = data.get("version")
    if data.get("format") != "trimtab" or type(version) is not int or version < 1:
        raise InputError(
            f"{where} is not in Trimtab's format: 'format' and 'version' are not right"
        )
    if version > VERSION:
        raise InputError(
            f"{where} has format version {version}; this Trimtab reads up to {VERSION}: upgrade it"
        )
    try:
        composition = read(data.get("composition"))
        names = order(composition)
    except (InputError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from None
    if composition is None or not names:
        raise InputError(f"{where}: 'composition' names no adapter")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(f"{where}: {name!r:.60} is no name of an adapter")
        if not (folder / name).is_dir():
            raise InputError(f"{where} names the adapter {name!r}, and {folder / name} is missing")
    return composition
