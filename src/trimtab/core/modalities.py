"""The parts of a model that sees, hears and reads: what was built for pictures, sound and text, and
what connects them.

transformers' models of several modalities have a configuration for each (`vision_config`), and
every module keeps the one that it was built from. An encoder and decoder of different kinds are the
parts of its input and of text. What lies in none of them connects them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trimtab.core.walk import plain, walk

PARTS = {
    "vision": "what sees",
    "audio": "what hears",
    "text": "what reads and writes",
    "connector": "what lies between these",
}
_INPUTS = {"pixel_values": "vision", "input_features": "audio", "input_values": "audio"}
_OWN = {"vision": ("vision_config",), "audio": ("audio_config",), "text": ("text_config",)}


def parts(model: nn.Module) -> dict[str, str]:
    """Name of a module -> the part that begins there; nothing for a model of one modality."""
    config = getattr(model, "config", None)
    if config is None:
        return {}
    own = {
        part: sub
        for part, names in _OWN.items()
        if (sub := next((one for n in names if (one := getattr(config, n, None))), None))
    }
    if own.keys() - {"text"}:
        return _built_from(model, own)
    return _sides(model, config)


def part_of(name: str, begun: Mapping[str, str]) -> str | None:
    """The part that a module lies in, of a model whose parts begin there."""
    if not begun:
        return None
    for start, part in begun.items():
        if f"{name}.".startswith(f"{start}."):
            return part
    # A model that reads with its own blocks, as GIT does, has no configuration for text apart.
    if "text" not in begun.values() and any(step.isdigit() for step in name.split(".")):
        return "text"
    return "connector"


def _built_from(model: nn.Module, own: Mapping[str, Any]) -> dict[str, str]:
    """The outermost modules that keep one of these configurations."""
    found: dict[str, str] = {}
    for name, module in walk(model):
        if any(f"{name}.".startswith(f"{start}.") for start in found):
            continue
        kept = getattr(plain(module), "config", None)
        for part, config in own.items():
            if name and (kept is config or (kept is not None and type(kept) is type(config))):
                found[name] = part
                break
    return found


def _sides(model: nn.Module, config: Any) -> dict[str, str]:
    """Encoder and decoder, where the encoder's input is no text."""
    seen = _INPUTS.get(getattr(model, "main_input_name", ""))
    if seen is None or not getattr(config, "is_encoder_decoder", False):
        return {}
    found: dict[str, str] = {}
    for name, _ in walk(model):
        leaf = name.rpartition(".")[2]
        if leaf in ("encoder", "decoder") and not any(
            f"{name}.".startswith(f"{s}.") for s in found
        ):
            found[name] = seen if leaf == "encoder" else "text"
    return found
