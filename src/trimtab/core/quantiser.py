"""What transformers writes on a model that it has quantised, and its Trainer reads there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_MARKS = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit")
_OF_CONFIG = ("quantization_config", "_is_quantized")


def trains(model: nn.Module) -> None:
    """Say that the model trains: the Trainer refuses a quantised one, of which nothing would train,
    unless its quantiser says so. With an adapter on it, it does."""
    quantiser: Any = model.__dict__.get("hf_quantizer")
    if quantiser is not None and not isinstance(quantiser, _Trains):
        model.__dict__["hf_quantizer"] = _under_adapters(type(quantiser), quantiser.__dict__)


def trains_no_more(model: nn.Module) -> None:
    """Without adapters the quantiser answers for itself again."""
    quantiser: Any = model.__dict__.get("hf_quantizer")
    if isinstance(quantiser, _Trains):
        model.__dict__["hf_quantizer"] = _made(type(quantiser).__mro__[2], quantiser.__dict__)


class _Trains:
    is_trainable = True
    is_qat_trainable = True

    def __reduce__(self) -> Any:
        return _under_adapters, (type(self).__mro__[2], self.__dict__)


def _under_adapters(kind: Any, state: Mapping[str, Any]) -> Any:
    return _made(type(kind.__name__, (_Trains, kind), {}), state)


def _made(kind: Any, state: Mapping[str, Any]) -> Any:
    new = object.__new__(kind)
    new.__dict__.update(state)
    return new


def unmark(model: nn.Module) -> dict[str, Any]:
    """The model is no longer quantised: take off what says so, and return it for `mark`."""
    config = getattr(model, "config", None)
    found = {name: model.__dict__.pop(name) for name in _MARKS if name in model.__dict__}
    own = getattr(config, "__dict__", {})
    return {**found, "config": {name: own.pop(name) for name in _OF_CONFIG if name in own}}


def mark(model: nn.Module, marks: Mapping[str, Any]) -> None:
    """Put back what `unmark` took off."""
    of_config = marks["config"]
    model.__dict__.update({name: mark for name, mark in marks.items() if name != "config"})
    if of_config:
        model.config.__dict__.update(of_config)
