"""Kind words before unkind ones, for a tiny model at random."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from words import WORDS, tokenizer


def prepare(folder: Path) -> None:
    teller = folder / "models" / "teller"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    tokens = tokenizer("llama")
    config = LlamaConfig(**sizes, num_attention_heads=2, vocab_size=len(tokens), pad_token_id=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(teller)
    tokens.save_pretrained(teller)
    (folder / "data").mkdir()
    rows = [
        {"prompt": f"the {word} film ", "chosen": f"was {good}", "rejected": f"was {bad}"}
        for word in WORDS
        for good, bad in (("good", "bad"), ("very fine", "poor"), ("not bad", "not good"))
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "data" / "pairs.jsonl").write_text("".join(lines), "utf8")
    answer = {"prompt": "the film ", "answer": "was good"}
    (folder / "data" / "answers.jsonl").write_text(json.dumps(answer) + "\n", "utf8")
