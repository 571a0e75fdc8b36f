"""Keywords by a network that transformers has no class for, with its real weights.

The keyword transformer (Berg et al. 2021, arXiv:2104.00769) looks at 98 frames of a second, each by
40 mel-frequency cepstral coefficients, whose windows, filters and transforms are in its file. It
tells ten words of Speech Commands (Warden 2018, arXiv:1804.03209) from others and from silence;
digits are among the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import Tensor, nn

from trimtab.data import media
from trimtab.tasks.audio_classification import AUDIO
from trimtab.tasks.one_label import LABEL, OneLabel, labelled
from trimtab.tasks.pictures import named
from trimtab.tasks.task import Batch, Encoded, shortest_first

_FRONT = "frontend."


class Sublayer(nn.Module):
    """Post-norm: LayerNorm(x + dense(y))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-6)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(x + self.dense(y))


class Layer(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        maps = {name: nn.Linear(width, width, bias=False) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(maps)})
        self.attention["output"] = Sublayer(width, width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = Sublayer(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x) for one in self.attention["self"].values())
        x = self.attention["output"](F.scaled_dot_product_attention(q, k, v), x)
        return self.output(F.gelu(self.intermediate["dense"](x), approximate="tanh"), x)


class KeywordTransformer(nn.Module):
    def __init__(self, config: Mapping[str, Any], labels: int) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, config["num_frames"] + 1, width))
        self.projection = nn.Linear(config["num_mfcc"], width)
        layers = [Layer(width, inner) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.classifier = nn.Linear(width, labels)

    def forward(self, frames: Tensor) -> Tensor:
        """(batch, frames, coefficients) -> (batch, labels)"""
        first = self.cls_token.expand(len(frames), -1, -1)
        x = torch.cat([first, self.projection(frames)], 1) + self.position_embeddings
        for layer in self.encoder["layer"]:
            x = layer(x)
        return self.classifier(x[:, 0])


class Cepstrum:
    """c = scale · DCT log(mel |DFT(window · frame)|) of each frame, by the model's own matrices."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text("utf8"))
        tensors = load_file(folder / "model.safetensors")
        self.weights = {k: x for k, x in tensors.items() if not k.startswith(_FRONT)}
        self.front = {k.removeprefix(_FRONT): x for k, x in tensors.items() if k.startswith(_FRONT)}
        self.kept: dict[Any, np.ndarray] = {}

    def __call__(self, cell: Any) -> np.ndarray:
        """(frames, coefficients) of the recording's first second."""
        if cell not in self.kept:
            self.kept[cell] = self._made(cell)
        return self.kept[cell]

    def _made(self, cell: Any) -> np.ndarray:
        rate, front = self.config["sample_rate"], self.front
        wave = media.audio(cell, rate)[:rate]
        wave = np.pad(wave, (0, rate - len(wave)))
        length, step = self.config["frame_length"], self.config["frame_step"]
        frames = np.lib.stride_tricks.sliding_window_view(wave, length)[::step] * front["window"]
        spectrum = np.hypot(frames @ front["dft_real"].T, frames @ front["dft_imag"].T)
        mel = np.maximum(spectrum @ front["mel"].T, self.config["mel_floor"])
        return (np.log(mel) @ front["dct"].T * front["scale"]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Keywords(OneLabel):
    name = "keywords"
    columns = (AUDIO, LABEL)
    dtypes = ("float32",)

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        return list(labels)

    def processor(self, model: str) -> Cepstrum:
        return Cepstrum(Path(model))

    def model(
        self, name: str, labels: Sequence[str], processor: Cepstrum, dtype: Any, dropout: bool
    ) -> tuple[nn.Module, list[str]]:
        model = KeywordTransformer(processor.config, len(labels))
        known = {
            key: torch.from_numpy(x)
            for key, x in processor.weights.items()
            if not key.startswith("classifier")
        }
        missing, unexpected = model.load_state_dict(known, strict=False)
        assert not unexpected
        return model, sorted(missing)  # the classifier, of other words

    def width(self, name: str) -> int:
        return 64

    def encode(
        self, rows: Any, processor: Cepstrum, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples = [{"audio": cell, "length": 1} for cell in rows["audio"]]
        labelled(examples, rows, labels)
        return shortest_first(examples)

    def collate(self, examples: Sequence[Any], processor: Cepstrum) -> dict[str, Tensor]:
        frames = np.stack([processor(example["audio"]) for example in examples])
        batch = {"frames": torch.from_numpy(frames)}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = model(batch["frames"])
        return self.loss_of(scores, batch["labels"]), scores

    def shown(self, rows: Any, index: int) -> str:
        return named(rows["audio"][index], index)
