"""Runs in processes of their own, so that each one's memory and seconds are its own.

A run that is over is never run again; one that was stopped goes on; one that failed leaves its
error, and is tried again by the next call. A lock, which the runs inherit, keeps two comparisons,
or a comparison and the last run of one that was killed, out of the same folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from trimtab.compare.energy import Meter
from trimtab.core.errors import TrimtabError
from trimtab.store.files import read_json, write_json, write_text
from trimtab.tune.folder import Run
from trimtab.tune.phases import Phases

ASKED, FAILED, SPENT = "asked.yaml", "failed.json", "spent.json"


class Failed(TrimtabError):
    """A run that came to no result; the others go on."""


def over(folder: Path) -> bool:
    """Whether the run there has come to its end."""
    return Run(folder).over


def tune(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the run in `folder`, which is made, or goes on, unless it is over.

    Raises:
        Failed: with the run's own error.
    """
    run = Run(folder)
    if run.over:
        return run.metrics()
    if run.config_file.exists():
        command = ["-m", "trimtab", "tune", "--resume", "--out", str(folder), "--json"]
    else:
        write_text(folder / ASKED, yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
        command = ["-m", "trimtab", "tune", str(folder / ASKED), "--json"]
    _run(folder, command)
    return run.metrics()


def part(name: str, folder: Path, result: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `trimtab.compare`'s part of this name finds, kept as `result` in `folder`."""
    if not (folder / result).exists():
        given = json.dumps({**arguments, "folder": str(folder)})
        _run(folder, ["-m", "trimtab.compare", name, given])
    return read_json(folder / result)


def _run(folder: Path, command: Sequence[str]) -> None:
    began, meter = time.perf_counter(), Meter()
    folder.mkdir(parents=True, exist_ok=True)
    inherited = (_held,) if _held is not None else ()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False,
        pass_fds=inherited,
    )  # fmt: skip
    _spend(folder, time.perf_counter() - began, meter.joules())
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        error = _error(done)
        write_json(folder / FAILED, {"error": error, "exit_code": done.returncode})
        raise Failed(error)
    (folder / FAILED).unlink(missing_ok=True)


def _error(done: subprocess.CompletedProcess[str]) -> str:
    """The run's own word, or the last line of what it said."""
    for line in reversed(done.stdout.splitlines()):
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and "error" in told:
                return str(told["error"])
    if done.returncode < 0:
        return f"the process was ended by signal {-done.returncode}: out of memory, perhaps"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"the process ended with {done.returncode} and no word"


def _spend(folder: Path, seconds: float, joules: float | None) -> None:
    """Added up over all the processes that worked in this folder."""
    path = folder / SPENT
    before = read_json(path) if path.exists() else {"seconds": 0.0, "joules": 0.0}
    both = None if joules is None or before["joules"] is None else before["joules"] + joules
    write_json(path, {"seconds": round(before["seconds"] + seconds, 3), "joules": both})


_held: int | None = None  # the lock's file, which the runs inherit


@contextlib.contextmanager
def alone(out: Path, phases: Phases) -> Iterator[None]:
    """No other comparison, nor a run that one left behind, works in `out` meanwhile."""
    global _held
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    _held = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(_held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            phases.say(f"another comparison, or a run of one, is at work in {out}: waiting for it")
            fcntl.flock(_held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(_held)
        _held = None
