"""What the tests of recipes share: small tokenizers, examples with choices, real stories."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cases
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trimtab.recipes.choices import Example

SHARED = Path(__file__).parents[3] / "shared"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = (
    *("a", "the", "film", "is", "was", "good", "bad", "very", "fine", "poor"),
    *("one", "two", "it", "in", "red", "blue", "text", "not", "and", "so"),
)
EXAMPLES = [
    Example("the film is", ("good", "very bad"), 0),
    Example("it was a poor text and so", ("good", "very bad", "not so good"), 1),
    Example("one", ("red", "blue"), 1),
]
ENCODER_DECODERS, DECODERS = ("t5", "bart"), ("gpt2", "llama")


@functools.cache
def tokenizer(architecture: str) -> Any:
    """One token a word; for an encoder-decoder with an end, for a decoder with a beginning."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>" if architecture in ENCODER_DECODERS else "<s> $A",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    )


def model(architecture: str) -> Any:
    return cases.by_name(architecture).model()


def shared(*path: str) -> Path:
    """A file or folder beside the project, or the test is skipped."""
    found = SHARED.joinpath(*path)
    if not found.exists():
        pytest.skip(f"there is no {found}")
    return found
