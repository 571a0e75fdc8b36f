"""Going on from several adapters at once (`--from-library DIR`).

fuse    AdapterFusion (arXiv:2005.00247): the adapters stay as they are, and attention over what
        each of them makes of a site is learned. The run keeps them beside it.
merge   one LoRA that begins at the mean of the adapters' changes, cut to their largest rank, and
        is then trained as any other.
"""

from __future__ import annotations

import re
from pathlib import Path

from trimtab import combine
from trimtab.adapt import activate, detach
from trimtab.core.adapter import Adapter
from trimtab.core.compose import Composition, Fuse
from trimtab.core.errors import InputError
from trimtab.methods.whole import Whole
from trimtab.store import bodies, save
from trimtab.tune import library
from trimtab.tune.config import Config
from trimtab.tune.folder import OWN
from trimtab.tune.session import Session

FUSION, MERGED = "fusion", "merged"
_START = "start"  # of a run's folder: what it begins at, where that was made for it


_IGNORED = ("plan", "rank", "alpha", "ranks")


def gather(session: Session) -> None:
    """Put the library's adapters on the base, and have the run train what combines them."""
    config = session.config
    if config.from_library is None:
        if config.combine is not None:
            raise InputError("--combine says what to do with --from-library DIR, which is missing")
        return
    how, made = config.combine or "fuse", Path(config.out) / _START
    if how == "merge" and config.start_from is not None and made.is_dir():
        config.start_from = str(made)  # before the run was stopped; its folder may have been moved
        return
    if config.method not in ("lora", FUSION):
        raise InputError(
            f"--from-library trains what combines the adapters there: leave out --method "
            f"{config.method}"
        )
    _refuse_ignored(config, how)
    names = _place(session, config.from_library)
    activate(session.model, None)
    if how == "fuse":
        config.method, config.rank, config.alpha, config.ranks = FUSION, None, None, {}
        config.method_arg = {**config.method_arg, "over": names}
        config.first_position = False  # the parts may look beyond a position
    else:
        _merge(session, names)
    said = {"fuse": "Fused over", "merge": "Started from the mean of"}[how]
    session.notes.append(f"{said} {len(names)} adapters: {', '.join(names)}.")


def _refuse_ignored(config: Config, how: str) -> None:
    """What the library's adapters say, and no flag could change."""
    if config.start_from is not None:
        raise InputError("--start-from and --from-library are two ways to begin: give one of them")
    for key in _IGNORED if how == "fuse" else (*_IGNORED, "target", "method_arg"):
        if getattr(config, key):
            raise InputError(
                f"--{key.replace('_', '-')} has no part in --combine {how}, which takes it from "
                "the library's adapters: leave it out"
            )


def composition(adapter: Adapter) -> Composition:
    """What a run saves: its adapter, with those that it combines."""
    return Fuse(*adapter.over, by=adapter.name) if adapter.over else adapter.name


def _place(session: Session, folder: str) -> list[str]:
    names: list[str] = []
    for name, path in library.adapters(folder).items():
        plain = re.sub(r"\W", "_", name)
        while plain in (*names, OWN, MERGED):
            plain += "_"
        bodies.place(session.model, library.body(path), plain)
        names.append(plain)
    if len(names) < 2:
        raise InputError(f"--from-library {folder} has one adapter: begin there, --start-from")
    return names


def _merge(session: Session, names: list[str]) -> None:
    model, config = session.model, session.config
    merged = combine.adapters(model, {name: 1 / len(names) for name in names}, into=MERGED)
    acting = {(site, method) for site, method in merged.entries if method.name != Whole.name}
    methods = {method for _, method in acting}
    if len(methods) != 1:
        raise InputError(
            "--combine merge: the adapters change more than matrices of low rank; --combine fuse "
            "takes them as they are"
        )
    (method,) = methods
    config.start_from = str(save(model, Path(config.out) / _START, name=MERGED))
    config.method, config.method_arg = method.name, dict(method.arguments())
    config.rank = config.alpha = None
    config.ranks = {}
    config.target = [site for site, _ in merged.entries]
    for name in (MERGED, *reversed(names)):
        detach(model, name)
