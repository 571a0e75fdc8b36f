"""Machines whose sensors drift apart before a fault, and a network trained on other machines."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

PAGE = Path(__file__).parents[3] / "docs" / "tasks" / "own-task.md"


def prepare(folder: Path) -> None:
    task = re.search(r"^```python\n(.*?)^```", PAGE.read_text("utf8"), re.DOTALL | re.MULTILINE)
    assert task is not None
    (folder / "readings.py").write_text(task[1], "utf8")
    for name in ("models/net", "data"):
        (folder / name).mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        )
        readings = torch.randn(240, 4).round(decimals=3)
    save_file(net.state_dict(), folder / "models" / "net" / "model.safetensors")
    rows = [
        {"readings": row, "label": "fault" if row[0] > row[1] else "sound"}
        for row in readings.tolist()
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "data" / "machines.jsonl").write_text("".join(lines), "utf8")
    (folder / "new.jsonl").write_text("".join(lines[:3]), "utf8")
