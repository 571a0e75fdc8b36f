"""A decoder's training step with LoRA, here and through HF PEFT: seconds and memory, alternating.

    python benchmarks/decoder.py [--rounds 3] [--steps 8] [--work short|long …]

The works: a Llama of width 768, 12 blocks, 4 heads of keys and values and 32,000 words, with random
weights and random tokens; LoRA of rank 8 on all linear maps but the head; transformers' Trainer for
everyone. `short`: 4 x 256 tokens. `long`: 2 x 2,048 with activation checkpointing. Peer A is HF
PEFT as its guides show it (fp32 weights under bf16 autocast, dropout 0.05), peer B the same library
tuned (bf16 weights and adapters, no dropout). Ours multiplies with the frozen matrices in eight
bits, and once more exactly. Each turn is a process of its own; the median of a
turn's steps counts, the first two left out, then the median of turns. Peak memory is the process's
own, less what it held with the libraries loaded and before there was a model. Writes
results/decoder.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import floor
from speed import CONTESTANTS, NAMES, output

RESULT = Path(__file__).parent / "results" / "decoder.json"
RANK, WARM = 8, 2
PEERS = ("peer_b", "peer_a")


@dataclass(frozen=True)
class Work:
    batch: int
    tokens: int
    checkpointing: bool


WORKS = {"short": Work(4, 256, False), "long": Work(2, 2048, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", action="append", choices=[*WORKS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        found = contest(options.contestant, WORKS[options.work[0]], options.steps)
        print(json.dumps(found))
        return
    known = json.loads(RESULT.read_text(encoding="utf8")) if RESULT.exists() else {}
    for name in options.work or WORKS:
        turns = []
        for number in range(options.rounds):
            turns.append({one: turn(one, name, options.steps) for one in CONTESTANTS})
            for one, found in turns[-1].items():
                print(
                    f"{name} round {number + 1}  {NAMES[one]:<34} {found['seconds']:7.3f} s  "
                    f"{found['peak_memory_bytes'] / 2**20:7.0f} MiB",
                    flush=True,
                )
        known[name] = conclude(WORKS[name], turns)
        print(name, known[name]["ratios"], known[name]["memory_ratios"])
    RESULT.write_text(json.dumps(known, indent=1) + "\n", encoding="utf8")


def operations(work: Work) -> int:
    """What a step cannot do without."""
    tokens = work.batch * work.tokens
    shapes = {(768, 768): 2, (768, 256): 2, (768, 2048): 2, (2048, 768): 1}
    block = sum(a * b * count for (a, b), count in shapes.items())
    features = sum((a + b) * count for (a, b), count in shapes.items())
    return (
        floor.frozen(12 * block, tokens, 2 if work.checkpointing else 1)
        + floor.frozen(768 * 32_000, tokens)
        + floor.low_rank(12 * features, RANK, tokens)
        + 12 * floor.attention(work.batch, 12, work.tokens, 64, causal=True)
    )


def turn(contestant: str, work: str, steps: int) -> dict[str, float]:
    command = [__file__, "--contestant", contestant, "--work", work, "--steps", str(steps)]
    return json.loads(output(command).splitlines()[-1])


def conclude(work: Work, turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    from trimtab.tune import hardware

    def median(one: str, fact: str) -> float:
        return statistics.median(turn[one][fact] for turn in turns)

    def ratios(fact: str) -> dict[str, float]:
        own = median("trimtab", fact)
        return {peer: round(median(peer, fact) / own, 3) for peer in CONTESTANTS[1:]}

    return {
        "work": f"{work.batch} x {work.tokens} tokens"
        + (", activation checkpointing" if work.checkpointing else ""),
        "turns": turns,
        "median_seconds": {one: round(median(one, "seconds"), 4) for one in CONTESTANTS},
        "ratios": ratios("seconds"),
        "memory_ratios": ratios("peak_memory_bytes"),
        "floor_seconds": round(operations(work) / floor.rate(), 4),
        "losses": {one: median(one, "loss") for one in CONTESTANTS},
        "hardware": hardware.facts(),
        "versions": hardware.versions(),
    }


# One contestant, in a process of its own.


def contest(contestant: str, work: Work, steps: int) -> dict[str, float]:
    import peft  # noqa: F401  # in every contestant's memory before the measurement begins
    import torch
    import transformers
    from torch.utils.data import Dataset
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401

    import trimtab

    trimtab.methods()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.set_seed(0)
    before = resident()
    checkpointing = work.checkpointing
    model = peer(contestant == "peer_b", checkpointing) if contestant in PEERS else ours(contestant)

    class Tokens(Dataset[dict[str, torch.Tensor]]):
        rows = torch.randint(5, 32_000, (work.batch * (steps + WARM), work.tokens))

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": self.rows[index], "labels": self.rows[index]}

    arguments = common(
        work.batch,
        bf16=contestant == "peer_a",
        gradient_checkpointing=work.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if work.checkpointing else None,
    )
    took, loss = clocked(Trainer(model, arguments, train_dataset=Tokens()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": statistics.median(took[WARM - 1 :]),
        "loss": loss,
        "peak_memory_bytes": peak - before,
    }


def common(batch: int, **more: Any) -> Any:
    """What the Trainer is told for all contestants: one epoch, and nothing beside it."""
    from transformers import TrainingArguments

    quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True}
    rate = {"num_train_epochs": 1, "learning_rate": 1e-3}
    own = {"per_device_train_batch_size": batch, **quiet, **rate, **more}
    return TrainingArguments(tempfile.mkdtemp(), **own)


def clocked(trainer: Any) -> tuple[list[float], float]:
    """(seconds of each step but the first, the loss) of a training."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    loss = trainer.train().training_loss
    return [end - start for start, end in itertools.pairwise(ends)], loss


def resident() -> int:
    """Bytes that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def llama(dtype: Any, attention: str = "sdpa") -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).to(dtype)


def ours(contestant: str = "trimtab") -> Any:
    import torch

    import trimtab

    trimtab.kernels.keep_memory()
    model = llama(torch.bfloat16)
    trimtab.attach(model, trimtab.LoRA(rank=RANK, alpha=2 * RANK))
    trimtab.kernels.blockwise(model)
    trimtab.kernels.rowwise(model)
    if contestant == "trimtab":
        trimtab.kernels.int8(model)
    return model


def peer(tuned: bool, checkpointing: bool = False) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    dropout = 0.0 if tuned else 0.05
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=dropout, target_modules="all-linear"
    )
    base = llama(torch.bfloat16 if tuned else torch.float32)
    model = get_peft_model(base, config, autocast_adapter_dtype=not tuned)
    if checkpointing:
        model.enable_input_require_grads()
    return model


if __name__ == "__main__":
    main()
