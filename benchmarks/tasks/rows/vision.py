"""Pictures."""

from __future__ import annotations

from row import Row

ROWS = {
    "digits": Row(
        *("image-classification", "deit-tiny-patch16-224", "mnist_t10k"),
        options=("--batch-size", "16"),
    ),
}
