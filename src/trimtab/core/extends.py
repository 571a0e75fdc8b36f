"""Which attention functions take trained keys and values before their own."""

from __future__ import annotations

from torch import nn

OURS = "trimtab_"
"""What an attention function's name begins with once it knows of prefixes."""

EXTENDED = ("eager", "sdpa", "blockwise")
"""The attention functions that prefixes extend."""


def unextended(module: nn.Module) -> str | None:
    """Why no prefix can stand before this attention, if none can."""
    chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if str(chosen or "eager").removeprefix(OURS) in EXTENDED:
        return None
    return (
        f"a prefix extends attention by 'sdpa' or 'eager', and this model uses {chosen!r}: "
        "load it with attn_implementation='sdpa'"
    )
