"""What the tests of recipes share: examples with choices, real stories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
from words import ENCODER_DECODERS as ENCODER_DECODERS
from words import tokenizer as tokenizer

from trimtab.recipes.choices import Example

SHARED = Path(__file__).parents[3] / "shared"
EXAMPLES = [
    Example("the film is", ("good", "very bad"), 0),
    Example("it was a poor text and so", ("good", "very bad", "not so good"), 1),
    Example("one", ("red", "blue"), 1),
]
DECODERS = ("gpt2", "llama")


def model(architecture: str) -> Any:
    return cases.by_name(architecture).model()


def shared(*path: str) -> Path:
    """A file or folder beside the project, or the test is skipped."""
    found = SHARED.joinpath(*path)
    if not found.exists():
        pytest.skip(f"there is no {found}")
    return found
