"""Where a prompt starts: at rows of the input embedding, or at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.site import Site

Start = str | tuple[int, ...]


def check_start(name: str, start: Start) -> None:
    """Of a method's hyper-parameter `start`."""
    if not start or (isinstance(start, str) and start not in ("vocabulary", "random")):
        raise InputError(f'{name}: start is "vocabulary", "random" or ids of tokens, not {start!r}')


def rows(name: str, site: Site, length: int, start: Start) -> Tensor:
    """(length, d): rows of the embedding at random ("vocabulary"), uniform in ±0.5 ("random"), or
    those of given tokens, repeated as often as needed."""
    embedding: Any = site.module.get_input_embeddings()  # type: ignore[operator]
    words, d = embedding.weight.shape
    if start == "random":
        return torch.rand(length, d) - 0.5
    if start == "vocabulary":
        chosen = torch.randint(words, (length,), device="cpu")
    else:
        ids = [int(start[i % len(start)]) for i in range(length)]
        if wrong := [i for i in ids if not 0 <= i < words]:
            raise InputError(f"{name}: start names token {wrong[0]}, of a vocabulary of {words}")
        chosen = torch.tensor(ids, device="cpu")
    found: Tensor = embedding.weight.detach()[chosen.to(embedding.weight.device)].float()
    return found * float(getattr(embedding, "embed_scale", 1.0))
