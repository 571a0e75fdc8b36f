"""Reading and writing an adapter's two files: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    own = {name: whole(tensor).cpu().contiguous() for name, tensor in sorted(tensors.items())}
    with replacing(path) as partial:
        save_file(own, partial, metadata={"format": "pt"})
        partial.chmod(0o644)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an error that names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(data).__name__}")
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
