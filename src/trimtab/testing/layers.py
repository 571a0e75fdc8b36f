"""Models of one layer, one for each geometry that a method may meet, and where to act on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from trimtab.testing.architectures import Architecture, Batch, numbers, tokens

WIDTH = 16


class _Fused(nn.Module):
    """Attention whose query, key and value are one map."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return (q @ k.mT).softmax(-1) @ v


class _OneLayer(nn.Module):
    """The layer where models have it, in the attention of the first block, and a head upon it."""

    def __init__(self, layer: nn.Module, leaf: str, x: Tensor) -> None:
        super().__init__()
        attention = layer if isinstance(layer, _Fused) else nn.ModuleDict({leaf: layer})
        self.layers = nn.ModuleList([nn.ModuleDict({"attention": attention})])
        self.path = "layers.0.attention" + ("" if attention is layer else f".{leaf}")
        self.mixes = isinstance(layer, nn.MultiheadAttention)  # told now: a host may replace it
        self.head = nn.Linear(self._features(x).shape[1], 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        layer = self.get_submodule(self.path)
        y = layer(x, x, x)[0] if self.mixes else layer(x)
        return y.flatten(1)


def _transposed() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(2 * WIDTH, WIDTH)


def _read(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch["x"])


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch["x"]).square().mean()


@dataclass(frozen=True)
class Layer:
    """A geometry: its model, and the targets under which a method may act there."""

    model: Architecture
    targets: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.model.name


def _layer(
    name: str,
    make: Callable[[], nn.Module],
    x: Callable[[], Tensor],
    leaf: str = "query",
    *others: str,
) -> Layer:
    architecture = Architecture(
        name, lambda: _OneLayer(make(), leaf, x()), lambda: {"x": x()}, _read, _loss
    )
    return Layer(architecture, (leaf, *others))


def _rows() -> Tensor:
    return numbers(2, 5, WIDTH)


def _image() -> Tensor:
    return numbers(2, 4, 9, 9)


LAYERS: tuple[Layer, ...] = (
    _layer("Linear", lambda: nn.Linear(WIDTH, 2 * WIDTH), _rows),
    _layer("Linear without bias", lambda: nn.Linear(WIDTH, 2 * WIDTH, bias=False), _rows),
    _layer("transformers' Conv1D", _transposed, _rows),
    _layer("Embedding", lambda: nn.Embedding(100, WIDTH), lambda: tokens(2, 5), "words"),
    _layer("LayerNorm", lambda: nn.LayerNorm(WIDTH), _rows, "norm"),
    _layer("Conv1d", lambda: nn.Conv1d(4, 6, 3, padding=1), lambda: numbers(2, 4, 9), "conv"),
    _layer("Conv2d", lambda: nn.Conv2d(4, 6, 3, stride=2), _image, "conv"),
    _layer("Conv2d, grouped", lambda: nn.Conv2d(4, 6, 3, groups=2), _image, "conv"),
    _layer("fused qkv", _Fused, _rows, "qkv", "query", "value"),
    _layer(
        "MultiheadAttention",
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        _rows,
        "mixer",
        *("query", "value", "out_proj"),
    ),
)
