"""P-tuning: GPT Understands, Too. Liu et al. 2021, arXiv:2103.10385.

    X' = [f(E); X],   E (n, d),   f an LSTM in both directions under an MLP, or an MLP

The embeddings of a prompt depend on one another through f, which eases their training; once they
are trained only f(E) matters, and `encoder="none"` holds it bare.

Use it where a plain prompt trains poorly: the encoder ties its positions together while training,
and need not be kept after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.draw import uniform
from trimtab.core.method import Dropout, Fields, Names, Param, Prompt, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class PTuning(Dropout, Prompt):
    """Embeddings before the input, made by a small network of trained ones."""

    name = "p-tuning"
    paper = "arXiv:2103.10385"
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="P_TUNING",
        tensors={"E": "prompt_embeddings"},
        fields={"length": "num_virtual_tokens"},
        patterns=(),
        more=Fields(  # a file holds what the encoder has made, not the encoder
            (
                *("encoder_reparameterization_type", "encoder_hidden_size"),
                *("encoder_num_layers", "encoder_dropout"),
            ),
            read=lambda config: {"encoder": "none"},
            write=lambda method: {},
        ),
    )

    length: int = option(20, "n, embeddings before the input")
    encoder: str = option("mlp", 'f: "mlp", "lstm" (with an MLP upon it) or "none"')
    hidden: int = option(0, "width of f; 0: the embedding's")
    layers: int = option(2, "layers of the LSTM")
    dropout: float = option(0.0, "share left out between the LSTM's layers in training, in [0, 1)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("length", self.length >= 1, "be at least 1")
        self.require("layers", self.layers >= 1, "be at least 1")
        self.require("hidden", self.hidden >= 0, "not be negative")
        known = self.encoder in ("mlp", "lstm", "none")
        self.require("encoder", known, 'be "mlp", "lstm" or "none"')
        lstm = self.encoder == "lstm"
        self.require_use("hidden", self.encoder != "none", "with an encoder")
        self.require_use("layers", lstm, 'with encoder="lstm"')
        between = lstm and self.layers > 1
        self.require_use("dropout", between, 'between several layers, with encoder="lstm"')

    def init(self, site: Site) -> dict[str, Param]:
        d = site.module.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        h = self.hidden or d
        found = {"E": Param(torch.randn(self.length, d))}
        if self.encoder == "lstm":
            for layer in range(self.layers):
                for end in (f"l{layer}", f"l{layer}_reverse"):
                    inner = d if layer == 0 else 2 * h
                    found |= {
                        f"{key}_{end}": Param(uniform(*shape, inputs=h))
                        for key, shape in {
                            "weight_ih": (4 * h, inner),
                            "weight_hh": (4 * h, h),
                            "bias_ih": (4 * h,),
                            "bias_hh": (4 * h,),
                        }.items()
                    }
        for i, (out, inner) in enumerate(self._widths(d, h)):
            found |= {
                f"W{i}": Param(uniform(out, inner, inputs=inner)),
                f"b{i}": Param(uniform(out, inputs=inner)),
            }
        return found

    def _widths(self, d: int, h: int) -> list[tuple[int, int]]:
        """(out, in) of the MLP's maps."""
        maps = {"mlp": [(h, d), (h, h), (d, h)], "lstm": [(2 * h, 2 * h), (d, 2 * h)]}
        return maps.get(self.encoder, [])

    def extend(self, p: Values, call: Call) -> Tensor:
        z = p.E
        if self.encoder == "lstm":
            weights = [tensor for name, tensor in p.tensors.items() if "_l" in name]
            zero = z.new_zeros(2 * self.layers, 1, weights[1].shape[1])
            z = torch.lstm(  # biases, layers, dropout, training, both directions, batch first
                z[None],
                (zero, zero),
                weights,
                True,
                self.layers,
                self.dropout,
                p.training,
                True,
                True,
            )[0][0]
        last = len(self._widths(1, 1)) - 1
        for i in range(last + 1):
            z = linear(z, p.tensors[f"W{i}"], p.tensors[f"b{i}"])
            z = F.relu(z) if i < last else z
        return z
