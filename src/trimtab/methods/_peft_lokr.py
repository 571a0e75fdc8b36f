"""How HF PEFT's files name what LoKr has."""

from __future__ import annotations

from typing import Any

from trimtab.core.names import Names, padded_otherwise

_TENSORS = {
    "C": "lokr_w1",
    "C_b": "lokr_w1_a",
    "C_a": "lokr_w1_b",
    "D": "lokr_w2",
    "D_b": "lokr_w2_a",
    "D_a": "lokr_w2_b",
}


def _differs(method: Any, geometry: Any, module: Any) -> str | None:
    """There, the product with a whole D of three dimensions puts C along the kernel."""
    kernel = geometry.shape[2:]
    if len(kernel) > 2:
        return "it acts on convolutions of one and two dimensions only"
    if len(kernel) == 1:
        width, rank = geometry.shape[1], method.rank
        sides = method._split(geometry.out_features)[1], method._split(width)[1]
        if rank >= max(sides) / 2:
            return (
                f"at a convolution of one dimension it needs a rank below {max(sides)} / 2, since "
                "its product with a D of full rank runs along the kernel"
            )
    return padded_otherwise(method, geometry, module)


LOKR_NAMES = Names(
    peft_type="LOKR",
    tensors=_TENSORS,
    at={"conv": {**_TENSORS, "T": "lokr_t2"}},
    kernels={"D": 1, "T": 2},
    fields={
        "rank": "r",
        "alpha": "alpha",
        "factor": "decompose_factor",
        "both": "decompose_both",
        "tucker": "use_effective_conv2d",
    },
    differs=_differs,
)
