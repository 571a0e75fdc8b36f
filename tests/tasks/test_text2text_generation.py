"""Encoder-decoders: a speller of phonemes with real weights, and a T5 with a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from places import shared

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tasks.tokens import IGNORED
from trimtab.tune.config import Config
from trimtab.tune.run import tune

PHONES = {"AH": "ʌ", "AA": "ɑ", "IY": "i", "EH": "ɛ", "IH": "ɪ", "UW": "u", "ER": "ɜɹ", "AE": "æ"}
PLAIN = {letter.upper(): letter for letter in "bdfklmnpstvwz"}


def spelled(split: str, count: int) -> list[dict[str, str]]:
    """Words of the CMU dictionary whose sounds all have one letter in the model's alphabet."""
    rows = []
    for line in shared("data", "cmudict", f"{split}.tsv").read_text(encoding="utf8").splitlines():
        word, _, phones = line.partition("\t")
        sounds = [(PHONES | PLAIN).get(phone.rstrip("012")) for phone in phones.split()]
        if all(sounds) and len(rows) < count:
            rows.append({"source": word, "target": "".join(filter(None, sounds))})
    return rows


@torch.no_grad()
def test_the_loss_is_that_of_the_target() -> None:
    speller = str(shared("models", "bart-g2p-us"))
    task = lookup("text2text-generation")
    processor = task.processor(speller)
    model = task.model(speller, [], processor, torch.float32, False)[0].eval()
    rows = Dataset.from_list(
        [{"source": "hello", "target": "həlˈO"}, {"source": "a", "target": "ə"}]
    )
    batch: Any = task.collate(task.encode(rows, processor, [], 64).examples, processor)
    labels = batch["labels"]
    decoded = torch.cat([torch.full((2, 1), model.config.decoder_start_token_id), labels], 1)[
        :, :-1
    ]
    ids = decoded.masked_fill(decoded == IGNORED, model.config.pad_token_id)
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], decoder_input_ids=ids
    ).logits
    law = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert float(task.loss(model, batch)[0]) == pytest.approx(float(law), rel=1e-5)


def test_what_is_cut_still_ends() -> None:
    task, speller = lookup("text2text-generation"), str(shared("models", "bart-g2p-us"))
    processor = task.processor(speller)
    rows = Dataset.from_list([{"source": "abcdefghij", "target": "tttttttttt"}])
    found = task.encode(rows, processor, [], 6)
    (example,) = found.examples
    assert found.truncated == 2  # source and target
    assert len(example["input_ids"]) == len(example["labels"]) == 6
    assert example["input_ids"][-1] == example["labels"][-1] == processor.eos_token_id


def test_a_speller_learns_another_dictionary(
    given: Callable[..., Path], quick: Callable[..., Config], tmp_path: Path
) -> None:
    train, held_out = spelled("train", 400), spelled("validation", 60)
    data = given(train=train, validation=held_out[:20], test=held_out[20:])
    config = quick(
        model=shared("models", "bart-g2p-us"),
        data=data,
        task="text2text-generation",
        task_arg={"measure": "character_error_rate", "max_new_tokens": 24},
        max_steps=40,
        batch_size=32,
        lr=5e-3,
    )
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "character_error_rate"
    assert metrics["test"]["value"] < 0.9 * metrics["baselines"]["base"]["value"]
    assert set(metrics["metrics"]) == {"exact_match"}
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    words = tmp_path / "words.csv"
    words.write_text("source\nmap\nlid\n", encoding="utf8")
    told = predict(config.out, str(words))
    assert [row["source"] for row in told] == ["map", "lid"]
    assert all(row["generated"] for row in told)


def test_a_model_without_a_decoder_is_refused(
    given: Callable[..., Path], quick: Callable[..., Config]
) -> None:
    rows = [{"source": f"word {i}", "target": f"sound {i}"} for i in range(12)]
    config = quick(model="minilm", data=given(train=rows), task="text2text-generation")
    with pytest.raises(InputError, match="is no encoder-decoder"):
        tune(config, quiet=True)
    assert not Path(config.out).exists()
