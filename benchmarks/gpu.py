"""A Llama of 8 billion parameters on a GPU, LoRA and QLoRA: seconds and memory of a training step,
here, through HF PEFT and through Unsloth where it is installed, alternating.

    python benchmarks/gpu.py [--work lora|qlora …] [--rounds 3] [--steps 10]
        [--layers 32] [--width 4096] [--batch 4] [--tokens 1024] [--device cuda|cpu]

Llama 3's shape (width 4,096, 32 blocks, 8 heads of keys, 128,256 words) with random weights and
random tokens; rank 16 on all linear maps but the head, activation checkpointing, AdamW in one
kernel, 4 x 1,024 tokens, everyone in the same loop. `lora` has the base in bf16, as from_pretrained
gives it; `qlora` in NF4 with double quantisation. Peer A is HF PEFT as its guides show it (fp32
adapters, bf16 autocast, dropout 0.05; over NF4 after its prepare_model_for_kbit_training, which
keeps norms and head in fp32), peer B the same library tuned (all in bf16, no dropout). Each turn is
a process of its own; the median of a turn's steps counts, the first few left out, then the median
of turns. Peak memory is what torch allocated (on the processor: what the process held). Writes
results/gpu.json, in this very shape and on a CUDA device alone: smaller ones and the processor show
that it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import record
from speed import output

WORKS = ("lora", "qlora")
NAMES = {
    "trimtab": "Trimtab",
    "peer_b": "HF PEFT, tuned",
    "peer_a": "HF PEFT as its guides show it",
    "unsloth": "Unsloth",
}
RANK, WARM = 16, 4
KEEP = {"use_reentrant": False}


@dataclass(frozen=True)
class Shape:
    layers: int = 32
    width: int = 4096
    batch: int = 4
    tokens: int = 1024

    @property
    def words(self) -> int:
        return min(128_256, 32 * self.width)

    def flags(self) -> list[str]:
        return [part for name, value in vars(self).items() for part in (f"--{name}", str(value))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", action="append", choices=WORKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--contestant", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = Shape(options.layers, options.width, options.batch, options.tokens)
    if options.contestant:
        print(json.dumps(contest(options, shape)))
        return
    if options.device == "cuda" and not cuda():
        raise SystemExit("there is no CUDA device to measure on; nothing was measured or written")
    found = {work: measured(work, options, shape) for work in options.work or WORKS}
    for work, told in found.items():
        print(work, told["ratios"], "memory", told["memory_ratios"])
    if options.device == "cuda" and shape == Shape() and len(found) == len(WORKS):
        record.write("gpu", {"shape": vars(shape), **found, "peers": versions()})
    else:
        print("not written: results are of both works, in the full shape, on a CUDA device")


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def everyone() -> list[str]:
    there = importlib.util.find_spec("unsloth") is not None
    return [one for one in NAMES if one != "unsloth" or there]


def versions() -> dict[str, str]:
    names = ("peft", "bitsandbytes", "triton", "unsloth")
    return {name: metadata.version(name) for name in names if importlib.util.find_spec(name)}


def measured(work: str, options: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    same = ["--work", work, "--steps", str(options.steps), "--device", options.device]
    turns: list[dict[str, dict[str, Any]]] = []
    for number in range(options.rounds):
        turns.append({})
        for one in everyone():
            told = output([__file__, "--contestant", one, *same, *shape.flags()])
            turn = turns[-1][one] = json.loads(told.splitlines()[-1])
            print(
                f"{work} round {number + 1}  {NAMES[one]:<30} {turn['seconds']:8.4f} s  "
                f"{turn['peak_memory_bytes'] / 2**30:7.2f} GiB  loss {turn['loss']:.3f}",
                flush=True,
            )
    return conclude(turns)


def conclude(turns: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    def medians(fact: str) -> dict[str, float]:
        return {one: statistics.median(turn[one][fact] for turn in turns) for one in turns[0]}

    def ratios(fact: str) -> dict[str, float]:
        found = medians(fact)
        own = found.pop("trimtab")
        return {peer: round(value / own, 3) for peer, value in found.items()}

    return {
        "turns": turns,
        "median_seconds": medians("seconds"),
        "median_peak_memory_bytes": medians("peak_memory_bytes"),
        "ratios": ratios("seconds"),
        "memory_ratios": ratios("peak_memory_bytes"),
        "losses": medians("loss"),
    }


# One contestant, in a process of its own.


def contest(options: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    make = {"trimtab": ours, "peer_a": shown, "peer_b": tuned, "unsloth": unsloth}
    made = make[options.contestant](options.work[0], shape, options.device)
    import torch  # after Unsloth, which asks to be imported first

    model: Any = made.train()
    optimizer = torch.optim.AdamW(
        [one for one in model.parameters() if one.requires_grad], lr=1e-4, fused=True
    )
    torch.manual_seed(1)
    size = (options.steps + WARM, shape.batch, shape.tokens)
    data = torch.randint(5, shape.words, size, device=options.device)
    autocast = options.contestant == "peer_a"
    took, losses, on_gpu = [], [], options.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for ids in data:
        began = time.perf_counter()
        with torch.autocast(options.device, torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # which waits for the forward pass, as a trainer that logs does
        if on_gpu:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    if not math.isfinite(losses[-1]):
        raise SystemExit(f"{options.contestant}: the loss is {losses[-1]}")
    from trimtab.kernels import gpu

    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": statistics.median(took[WARM:]),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else resident,
        "loss": statistics.mean(losses[WARM:]),
        "choices": gpu.choices,
    }


def llama(shape: Shape, device: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    heads = max(4, shape.width // 128)
    config = LlamaConfig(
        vocab_size=shape.words,
        hidden_size=shape.width,
        intermediate_size=shape.width * 7 // 2,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        use_cache=False,
    )
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)


def base(work: str, shape: Shape, device: str) -> Any:
    """Peers have the same codes: bitsandbytes' own modules."""
    import trimtab

    model = llama(shape, device)
    return trimtab.quantise(model, "nf4") if work == "qlora" else model


def ours(work: str, shape: Shape, device: str) -> Any:
    import trimtab

    model = base(work, shape, device)
    trimtab.attach(model, trimtab.LoRA(rank=RANK, alpha=2 * RANK))
    model.activation_checkpointing_enable(KEEP)
    return model


def shown(work: str, shape: Shape, device: str) -> Any:
    from peft import prepare_model_for_kbit_training

    if work == "lora":
        return peer(work, shape, device, lambda model: None, dropout=0.05)
    return peer(
        *(work, shape, device),
        lambda model: prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=KEEP),
        dropout=0.05,
    )


def tuned(work: str, shape: Shape, device: str) -> Any:
    return peer(work, shape, device, lambda model: None, in_bf16=True)


def peer(
    work: str,
    shape: Shape,
    device: str,
    prepare: Callable[[Any], object],
    dropout: float = 0.0,
    in_bf16: bool = False,
) -> Any:
    from peft import LoraConfig, get_peft_model

    model = base(work, shape, device)
    model.is_loaded_in_4bit = work == "qlora"  # as transformers says of what it has quantised
    prepare(model)
    model.activation_checkpointing_enable(KEEP)
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=dropout, target_modules="all-linear"
    )
    return get_peft_model(model, config, autocast_adapter_dtype=not in_bf16)


def unsloth(work: str, shape: Shape, device: str) -> Any:
    """As its notebooks show it; it reads a model from a folder, with a tokenizer."""
    import unsloth  # isort: skip  # before transformers, which it changes
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    pieces = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    with tempfile.TemporaryDirectory() as folder:
        llama(shape, device).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(folder)
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            folder, max_seq_length=shape.tokens, load_in_4bit=work == "qlora"
        )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=targets,
        use_gradient_checkpointing="unsloth",
    )


if __name__ == "__main__":
    main()
