"""What is read of a checkpoint's configuration: limits, dropout, the order of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from trimtab.tasks import models


class Tokenizer:
    model_max_length = 10**30


def test_a_model_without_a_limit_says_minus_one() -> None:
    config = hf.XLNetConfig()
    assert config.max_position_embeddings == -1
    assert models.position_limit(config, Tokenizer) == 10**9
    assert models.position_limit(hf.BertConfig(), Tokenizer) == 512


@pytest.mark.parametrize(
    "config",
    [
        hf.Wav2Vec2Config(),
        hf.SegformerConfig(),
        hf.WhisperConfig(encoder_layerdrop=0.1, decoder_layerdrop=0.2),
        hf.GPT2Config(),
    ],
    ids=lambda config: str(config.model_type),
)
def test_no_kind_of_dropout_is_left(config: Any) -> None:
    models.without_dropout(config)
    left = {key: x for key, x in config.to_dict().items() if "drop" in key and x not in (0, None)}
    assert not left


def test_labels_come_by_their_ids(tmp_path: Path) -> None:
    """A file may have them in another order: by the text of the id, say."""
    hf.BertConfig(num_labels=3).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    told = json.loads(file.read_text("utf8"))
    told["id2label"] = {"2": "bad", "0": "good", "1": "neither"}
    file.write_text(json.dumps(told), "utf8")
    assert models.own_labels(str(tmp_path)) == ["good", "neither", "bad"]
