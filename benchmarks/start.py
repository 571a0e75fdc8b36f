"""How long it takes until something happens: importing, help, the first adapter.

    python benchmarks/start.py [--rounds 9]

Each turn is a process of its own; medians. `import trimtab` and the first `attach` count what comes
on top of torch, as the process itself measures it; help is the whole command. Writes
results/start.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import record

IMPORT = (
    "import time, torch; t = time.perf_counter(); import trimtab; print(time.perf_counter() - t)"
)
ATTACH = """
import time, torch
model = torch.nn.Sequential(torch.nn.Linear(8, 8))
t = time.perf_counter()
import trimtab
trimtab.attach(model, trimtab.LoRA(rank=2), "0")
print(time.perf_counter() - t)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    turns: dict[str, list[float]] = {"import trimtab": [], "first attach": [], "trimtab --help": []}
    for _ in range(options.rounds):
        turns["import trimtab"].append(float(output("-c", IMPORT)))
        turns["first attach"].append(float(output("-c", ATTACH)))
        began = time.perf_counter()
        output("-m", "trimtab", "--help")
        turns["trimtab --help"].append(time.perf_counter() - began)
    seconds = {name: round(statistics.median(times), 4) for name, times in turns.items()}
    record.write("start", {"seconds": seconds})
    print(json.dumps(seconds))


def output(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
