"""What an adapter costs while text is generated, a token, against the base alone.

    python benchmarks/generation.py [--rounds 5] [--tokens 8]

The work: 64 prompts of 16 tokens, greedy, with a cache; a Llama of width 768 and 12 blocks with a
vocabulary of 32,000 and random weights in bf16. `frozen by hand` is what anyone gets who sets
`requires_grad` to False: the head's product over one position of every prompt leaves the fast path
of torch. `frozen` carries a LoRA of rank 8 that is not active; `merged` has it in its weights.
Medians of alternating rounds, but for `by hand`: one call, after the others. Writes
results/generation.json.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from typing import Any

import record
import torch
from decoder import RANK, llama

import trimtab
from trimtab.tune import hardware

PROMPTS, LENGTH = 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    base = llama(torch.bfloat16).eval()
    ids = torch.randint(5, 32_000, (PROMPTS, LENGTH))
    by_hand = copy.deepcopy(base).requires_grad_(False)
    ours, merged = adapted(base), adapted(base)
    trimtab.merge(merged)

    def generate(model: Any, active: str | None = "default") -> Callable[[], object]:
        def run() -> object:
            if model is ours:
                trimtab.activate(model, active)
            return model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=options.tokens,
                min_new_tokens=options.tokens,
                do_sample=False,
                pad_token_id=0,
            )

        return run

    calls = {
        "base": generate(base),
        "frozen": generate(ours, None),
        "LoRA": generate(ours),
        "merged": generate(merged),
    }
    took = hardware.measure(calls, options.rounds)
    took["frozen by hand"] = hardware.measure({"one": generate(by_hand)}, 1)["one"]
    token = {name: round(ms / options.tokens, 2) for name, ms in took.items()}
    result = {
        "work": f"{PROMPTS} prompts of {LENGTH} tokens, {options.tokens} more",
        "ms_a_token": token,
        "against_base": {name: round(ms / token["base"], 3) for name, ms in token.items()},
    }
    record.write("generation", result)
    print(json.dumps(result))


def adapted(base: Any) -> Any:
    model = copy.deepcopy(base)
    for parameter in trimtab.attach(model, trimtab.LoRA(rank=RANK)).parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


if __name__ == "__main__":
    main()
