"""How HF PEFT's files name what DeLoRA has, and hold what its start takes off."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.core.names import Fields, Names
from trimtab.core.values import Values

SHORT = 1e-4  # what a shorter row or column counts as

DELORA_NAMES = Names(
    peft_type="DELORA",
    tensors={
        "A": "delora_A",
        "B": "delora_B",
        "strength": "delora_lambda",
        "norm": "delora_w_norm",
    },
    fields={"rank": "r", "strength": "delora_lambda", "dropout": "module_dropout"},
    biases="delora_only",
    patterns=("rank", "strength"),
    spelled={"strength": "lambda"},
    more=Fields((), lambda config: {"anchored": False}, lambda method: {}),
)


def unanchored(p: Values, strength: float) -> dict[str, Tensor]:
    """Tensors of twice the rank and strength, which take off nothing: where λ is no longer the
    strength at the start, columns of the weaker half are so short that their lengths count."""
    first = torch.full_like(p.strength, strength)
    most = torch.maximum(p.strength.abs(), first)
    halves = []
    for B, share in ((p.B, p.strength / most), (p.B0, -first / most)):
        unit = B / B.norm(dim=-2, keepdim=True).clamp_min(SHORT)
        short = torch.where(share.abs() < 1, SHORT, 1.0)
        halves.append(unit * (share * short)[..., None, :])
    A, B = torch.cat([p.A, p.A0], -2), torch.cat(halves, -1)
    return {"A": A, "B": B, "norm": p.norm, "strength": 2 * most}
