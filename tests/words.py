"""A small tokenizer for the suite's tiny language models: one token a word."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = (
    *("a", "the", "film", "is", "was", "good", "bad", "very", "fine", "poor"),
    *("one", "two", "it", "in", "red", "blue", "text", "not", "and", "so"),
)
ENCODER_DECODERS = ("t5", "bart")


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
