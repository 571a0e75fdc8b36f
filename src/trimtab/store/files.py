"""Reading and writing an adapter's two files: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.core.errors import InputError, TrimtabError
from trimtab.core.sharded import whole


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A neighbour of `path` to write to, which takes its place when all went well: a reader sees
    the old file or the new one, never a part.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise TrimtabError(f"cannot write {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A broken letter in somebody's data (a lone surrogate) must not cost the file."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf8", errors="replace")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    own = {name: whole(tensor).cpu().contiguous() for name, tensor in sorted(tensors.items())}
    with replacing(path) as partial:
        save_file(own, partial, metadata={"format": "pt", **(metadata or {})})
        partial.chmod(0o644)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an error that names the file."""
    try:
        return parse_json(path.read_text(encoding="utf8"), str(path))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None


def parse_json(text: str, where: str) -> dict[str, Any]:
    """A JSON object from a text, or an error that names where it stands."""
    try:
        data = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{where} must hold a JSON object, not {type(data).__name__}")
    return data


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors from a safetensors file. No other format is read: pickles can run code."""
    if not path.is_file():
        pickled = path.with_suffix(".bin")
        hint = f" ({pickled.name} is a pickle, which is never loaded)" if pickled.exists() else ""
        raise InputError(f"{path} is missing{hint}")
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no whole safetensors file: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file keeps beside its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no whole safetensors file: {error}") from None


def digest(path: Path) -> str:
    """What tells one file from any other."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a file of `torch.save`, of which only tensors are read: nothing in it can
    run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file that holds a state dict")
    try:
        with warnings.catch_warnings(action="ignore"):  # of old formats, which are refused or read
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors and is not loaded: a pickle can run code; save the "
            "state dict alone"
        ) from None
    except Exception as error:  # a broken archive fails in many ways
        raise InputError(f"{path} is no whole state dict: {error}") from None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"{path} must hold a state dict: names and tensors")
    return state
