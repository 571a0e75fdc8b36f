"""Alcohols, acids and alkanes of a few carbons, and an encoder that spells."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ENDS = {"O": -1.0, "C(=O)O": 0.0, "": 2.0, "F": 1.0}  # and how water takes to them


def encoder(folder: Path) -> Path:
    """A tiny random BERT with a token for each letter and sign."""
    vocabulary = {token: i for i, token in enumerate((*_SPECIAL, *"CNOFcno()=#123[]+-@H"))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=made, sep_token="[SEP]", mask_token="[MASK]", **names
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.BertConfig(vocab_size=len(vocabulary), num_attention_heads=2, **sizes)
        hf.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def molecules() -> list[dict[str, float | str]]:
    """Chains, branched or not: the more carbon, the less soluble."""
    chains = ["C" * n for n in range(2, 16)] + [f"C(C){'C' * n}" for n in range(2, 14)]
    return [
        {"smiles": chain + end, "label": round(-0.5 * chain.count("C") - water, 2)}
        for chain in chains
        for end, water in ENDS.items()
    ]


def pairs() -> list[dict[str, object]]:
    """Two molecules, and whether they end alike."""
    found = molecules()
    return [
        {
            "smiles": one["smiles"],
            "other": two["smiles"],
            "label": int(i % len(ENDS) == j % len(ENDS)),
        }
        for i, one in enumerate(found)
        for j, two in enumerate(found)
        if (7 * i + j) % 39 == 0 and i != j
    ]


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def prepare(folder: Path) -> None:
    encoder(folder / "models" / "smiles-bert")
    write(folder / "data" / "solubility.csv", molecules())
    write(folder / "new.csv", [{"smiles": "CCCO"}, {"smiles": "OCCC"}])
