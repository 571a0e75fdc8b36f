"""Where a run's adapter begins: at one that was trained before (`--start-from`).

    φ₀ = φ of the adapter that is named, at every site

The base, the methods and the sites must be the same. The head is taken over where it answers the
same labels in the same order; else it begins as any new head does. An adapter of HF PEFT, and a
folder with nothing but an adapter, do not tell their labels: their head is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trimtab.choose import choose
from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError, TrimtabError
from trimtab.core.method import Method
from trimtab.methods.whole import Whole
from trimtab.store import bodies
from trimtab.tune import library
from trimtab.tune.folder import Run
from trimtab.tune.session import Session

_BEST = "best:"
_FREE = {"dropout"}  # of a method's arguments: may change from run to run

Acting = Mapping[tuple[str, str], Method]  # site and method's name -> method


def adapter_folder(path: str) -> Path:
    """The adapter of a run's folder, or the folder itself."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"--start-from {path}: there is no such folder")
    run = Run(folder)
    if run.config_file.exists():
        run.finished()
        return run.adapter
    return folder


def labels(path: str) -> list[str] | None:
    """What the head of a run answers; None of an adapter alone."""
    run = Run(Path(path))
    return run.config().labels if run.config_file.exists() else None


def check(session: Session, whole: list[str]) -> None:
    """Refuse an adapter that this run cannot begin at, before anything is computed."""
    config, path = session.config, session.config.start_from
    if path is None:
        return
    if config.selects:
        raise InputError(
            f"--start-from is of adapters, and --method {config.method} trains the base itself"
        )
    saved = _read(session, path)
    method = config.build_method()
    target = None if isinstance(method, dict) else config.target
    wanted = _acting(choose(session.model, method, target, whole))
    _agree(_acting(saved.pairs), wanted, path)


def begin(session: Session, adapter: Adapter) -> None:
    """Give the run's adapter the values of the one that it starts from."""
    path = session.config.start_from
    if path is None:
        return
    saved, own = _read(session, path), adapter.tensors()
    with torch.no_grad():
        for key, tensor in saved.tensors.items():
            if key not in own or own[key].shape != tensor.shape:
                raise InputError(
                    f"--start-from {path}: its {key!r} {tuple(tensor.shape)} has no place in this "
                    "run's adapter"
                )
            own[key].copy_(tensor)
    head = "with its head" if _same_labels(session, path) else "with a new head"
    session.notes.append(f"The adapter started from {path}, {head}.")


def _read(session: Session, path: str) -> bodies.Saved:
    """What is taken over; a base that is another, and files that are broken, are refused."""
    try:
        saved = bodies.read(session.model, adapter_folder(path))
        bodies.check_base(session.model, saved)
        if _same_labels(session, path):
            return saved
        return bodies.without_head(session.model, saved)
    except TrimtabError as error:
        said = str(error)
        raise InputError(
            said if "--start-from" in said else f"--start-from {path}: {said}"
        ) from None


def _same_labels(session: Session, path: str) -> bool:
    return bool(session.labels) and labels(path) == session.labels


def _acting(pairs: Any) -> Acting:
    return {(site.name, method.name): method for site, method in pairs if method.name != Whole.name}


def _agree(there: Acting, here: Acting, path: str) -> None:
    """The same methods at the same sites, or what to say so that they are."""
    methods = [sorted({name for _, name in acting}) for acting in (there, here)]
    if methods[0] != methods[1]:
        raise InputError(
            f"--start-from {path}: it is {' and '.join(methods[0])}, and this run trains "
            f"{' and '.join(methods[1])}: choose --method {methods[0][0]}"
        )
    for one, other, what in ((there, here, "acts"), (here, there, "does not act")):
        if strange := sorted(site for site, name in one if (site, name) not in other):
            sites = sorted({site for site, _ in there})
            kinds = sorted({site.rpartition(".")[2] for site in sites})
            raise InputError(
                f"--start-from {path}: it {what} at {strange[0]!r} ({len(strange)} such sites), "
                f"unlike this run: choose --target {','.join(kinds)}"
            )
    for key, method in there.items():
        old, new = method.arguments(), here[key].arguments()
        for name in sorted(old.keys() | new.keys()):
            if name not in _FREE and old.get(name) != new.get(name):
                flag = f"--{name}" if name in ("rank", "alpha") else f"--method-arg {name}="
                raise InputError(
                    f"--start-from {path}: its {name} is {old.get(name)}, and this run's is "
                    f"{new.get(name)} at {key[0]!r}: choose {flag} {old.get(name)}"
                )


def settle(session: Session, rows: Any) -> None:
    """Of `best:DIR`, pin the adapter that is predicted to be the best start."""
    config = session.config
    if config.start_from is None or not config.start_from.startswith(_BEST):
        return
    folder = config.start_from.removeprefix(_BEST)
    found = library.best(session, rows, folder)
    config.start_from = str(found.folder)
    session.notes.append(f"Of the adapters in {folder}, {found.name} is predicted to start best.")
