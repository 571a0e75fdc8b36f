"""A mass on a line that is pushed towards zero, and a policy of one layer; `line.py` is its
simulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers as hf

STEPS = 12
SIMULATOR = '''"""A mass on a line: (place, speed) and a push."""

import numpy as np


def heavy(first, act):
    state, rewards, gained = first.copy(), None, 0.0
    for _ in range(12):
        push = act(state, rewards)[:, 0].clip(-1, 1)
        speed = 0.9 * state[:, 1] + 0.2 * push
        state = np.stack([state[:, 0] + 0.5 * speed, speed], axis=1)
        rewards = -np.abs(state[:, 0])
        gained = gained + rewards
    return gained
'''


def policy(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "n_layer": 1, "n_head": 2, "max_ep_len": 32}
    sizes |= {"bos_token_id": None, "eos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.DecisionTransformerConfig(state_dim=2, act_dim=1, **sizes)
        hf.DecisionTransformerModel(config).save_pretrained(folder)
    return folder


def trajectories(count: int = 40) -> list[dict[str, list]]:
    """Of a controller that pushes against place and speed, with noise."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        state, states, actions, rewards = rng.normal(size=2), [], [], []
        for _ in range(STEPS):
            push = float(np.clip(-state @ [1.0, 1.5] + rng.normal(0, 0.2), -1, 1))
            states.append(state.round(4).tolist())
            actions.append([round(push, 4)])
            speed = 0.9 * state[1] + 0.2 * push
            state = np.array([state[0] + 0.5 * speed, speed])
            rewards.append(round(-abs(float(state[0])), 4))
        found.append({"states": states, "actions": actions, "rewards": rewards})
    return found


def prepare(folder: Path) -> None:
    policy(folder / "models" / "policy")
    (folder / "line.py").write_text(SIMULATOR, "utf8")
    (folder / "data").mkdir()
    rows = "".join(json.dumps(row) + "\n" for row in trajectories())
    (folder / "data" / "pushes.jsonl").write_text(rows, "utf8")
    now = {"states": [[1.0, 0.0], [0.9, -0.2]], "actions": [[-1.0]], "rewards": [-0.9]}
    (folder / "new.jsonl").write_text(json.dumps({**now, "target": -3.0}) + "\n", "utf8")
