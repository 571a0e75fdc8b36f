"""A budget as one writes it: `0.5%`, `200k`, `1MB`, `60s`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from trimtab.core.errors import InputError

Unit = Literal["share", "parameters", "bytes", "seconds"]

_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z%]*)\s*")
_UNITS: dict[str, tuple[Unit, float]] = {
    "%": ("share", 0.01),
    "": ("parameters", 1),
    "k": ("parameters", 1e3),
    "m": ("parameters", 1e6),
    "b": ("parameters", 1e9),
    "kb": ("bytes", 1e3),
    "mb": ("bytes", 1e6),
    "gb": ("bytes", 1e9),
    "kib": ("bytes", 2**10),
    "mib": ("bytes", 2**20),
    "gib": ("bytes", 2**30),
    "s": ("seconds", 1),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
}


@dataclass(frozen=True)
class Budget:
    """What may be spent: a share of the base's parameters, parameters, bytes of the adapter's
    tensors, or seconds of training."""

    text: str
    unit: Unit
    amount: float

    def parameters(self, total: int, width: int, beside: int) -> int:
        """How many parameters of `width` bytes it allows, of a base with `total`; `beside` train in
        any case (a new head): they are on disk as well, and so are paid for by a budget of bytes
        alone."""
        if self.unit == "seconds":
            raise InputError("a budget of seconds is no number of parameters: measure a step")
        if self.unit == "bytes":
            allowed = self.amount / width - beside
            if allowed < 1:
                raise InputError(
                    f"--budget {self.text}: the head that trains beside the plan alone has "
                    f"{beside * width:,} bytes; give more"
                )
            return int(allowed)
        return int(self.amount * total if self.unit == "share" else self.amount)


def parse(text: str) -> Budget:
    """Read a budget; errors say what there is."""
    found = _PATTERN.fullmatch(str(text))
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise InputError(
            f"--budget {text!r} is no budget: write 0.5% (of the base's parameters), 200k "
            "(parameters), 1MB (of the adapter) or 60s (of training on this machine)"
        )
    amount = float(found[1]) * unit[1]
    if amount <= 0 or (unit[0] == "share" and amount > 1):
        raise InputError(f"--budget {text}: it must be above 0, and a share at most 100%")
    return Budget(str(text).strip(), unit[0], amount)
