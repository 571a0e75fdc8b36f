"""Control: what to do next, from what was seen, done and gained, to gain as much as is asked for.

A decision transformer reads R̂₁, s₁, a₁, R̂₂, s₂, a₂, … and says each action from what is before it:

    L = mean over steps of |f(R̂_{t-K+1}, s_{t-K+1}, a_{t-K+1}, …, R̂_t, s_t) - a_t|² / dim a
    R̂_t = Σ_{t' ≥ t} r_t'                         the return to go

Chen et al. 2021, arXiv:2106.01345. A policy is asked for a return, and a trained one answers with
actions that bring it.

    trimtab tune --task reinforcement-learning --model policy --data runs.jsonl --out runs/heavier

of trajectories, a line each: {"states": [[…], …], "actions": [[…], …], "rewards": [r₁, …]}. With
`simulator=module:function` the return itself is measured: the function gets the first states of
the held-out trajectories and a policy, and gives what was gained (see `Simulator`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.task import Batch, Encoded, Outputs, Task, shortest_first

if TYPE_CHECKING:
    from datasets import Dataset

STATES = Column("states", ("observations", "obs", "state"), kind="vectors")
ACTIONS = Column("actions", ("action",), required=False, kind="vectors")
REWARDS = Column("rewards", ("reward",), required=False, kind="numbers")
TARGET = Column("target", ("return_to_go", "target_return"), required=False, kind="number")

Act = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""(states (n, dim s), rewards (n,) of the last step, None at first) -> actions (n, dim a)"""
Simulator = Callable[[np.ndarray, Act], np.ndarray]
"""(first states (n, dim s), act) -> what each gained in all (n,)"""


@dataclass(frozen=True, kw_only=True)
class ReinforcementLearning(Task):
    """`context`: K, steps that the policy sees; `scale`: by which returns are divided before the
    model reads them; `simulator`: `module:function`, which must be importable."""

    context: int = 20
    scale: float = 1.0
    simulator: str | None = None

    name: ClassVar[str] = "reinforcement-learning"
    columns: ClassVar[tuple[Column, ...]] = (STATES, ACTIONS, REWARDS, TARGET)
    by_loss: ClassVar[bool] = True
    counts_tokens: ClassVar[bool] = False
    eval_batch: ClassVar[int] = 256
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def __post_init__(self) -> None:
        whole = isinstance(self.context, int) and not isinstance(self.context, bool)
        if not whole or self.context < 1:
            raise InputError(f"{self.name}: context is a number of steps, not {self.context!r}")
        if not isinstance(self.scale, int | float) or not self.scale > 0:
            raise InputError(f"{self.name}: scale is a number above zero, not {self.scale!r}")
        if self.simulator is not None:
            imported(self.simulator)

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("action_error",) if self.simulator is None else ("episode_return", "action_error")

    # Data

    def fault(self, row: Mapping[str, Any]) -> str | None:
        steps = len(row["states"])
        for name in ("actions", "rewards"):
            if len(row.get(name, ())) != steps:
                return f"{steps} states, and {len(row.get(name, ()))} {name}"
        return None

    def unfit(self, row: Mapping[str, Any], model: str) -> str | None:
        config = policy_config(model)
        for name, width in (("states", config.state_dim), ("actions", config.act_dim)):
            if row.get(name) and len(row[name][0]) != width:
                return f"{name} of {len(row[name][0])} numbers, and {model!r} takes {width}"
        steps = len(row["states"])
        if steps > config.max_ep_len:
            return f"{steps} steps, and {model!r} knows {config.max_ep_len}"
        if not all(len(row.get(name, ())) in (steps - 1, steps) for name in ("actions", "rewards")):
            return f"{steps} states need as many actions and rewards, or one fewer to be told it"
        return None

    # Model

    def processor(self, model: str) -> Any:
        return policy_config(model)

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = policy_config(name)
        return models.load_model("DecisionTransformerModel", name, config, dtype, dropout=dropout)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    # Examples

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Trajectories with their returns to go; without `labels`, those that end at a state."""
        return shortest_first([self._example(rows[i], i, labels is None) for i in range(len(rows))])

    def _example(self, row: Mapping[str, Any], place: int, asked: bool) -> dict[str, Any]:
        steps, rewards = len(row["states"]), np.asarray(row.get("rewards") or [], dtype=float)
        if asked:
            if row.get("target") is None:
                raise InputError(
                    f"trajectory {place + 1} has no target: the return to gain from its last state"
                )
            rewards = np.append(rewards[: steps - 1], row["target"])
        held = {} if asked else {"first": row["states"][0]}
        return {
            **held,
            "states": row["states"],
            "actions": (row.get("actions") or [])[: steps - 1 if asked else steps],
            "to_go": rewards[::-1].cumsum()[::-1] / self.scale,
            "length": steps,
        }

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(n, T, …) states, actions and returns to go, with zeros after the end of each, and its
        steps (n,); of held-out ones the first states (n, dim s), from which a policy may begin."""
        longest = max(example["length"] for example in examples)
        widths = {"states": processor.state_dim, "actions": processor.act_dim, "to_go": 1}
        batch = {
            name: torch.from_numpy(
                np.stack([_padded(example[name], longest, width) for example in examples])
            )
            for name, width in widths.items()
        }
        batch["steps"] = torch.tensor([example["length"] for example in examples])
        if "first" in examples[0]:
            batch["first"] = torch.tensor([example["first"] for example in examples])
        return batch

    # Training and answers

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """And the actions (n, T, dim a), each from at most K steps: trajectories are cut in K."""
        n, steps = batch["states"].shape[:2]
        cut = {name: self._cut(batch[name]) for name in ("states", "actions", "to_go")}
        times = torch.arange(cut["states"].shape[1] * (len(cut["states"]) // n)).to(batch["steps"])
        there = times < batch["steps"][:, None]
        at = times.expand(n, -1).reshape(cut["states"].shape[:2])
        said = acts(model, cut, at).reshape(n, len(times), -1)[:, :steps]
        errors = (said - batch["actions"]).square().mean(-1) * there[:, :steps]
        return (errors.sum(-1) / batch["steps"]).mean(), said

    def _cut(self, x: Tensor) -> Tensor:
        """(n, T, d) -> (n ⌈T / K⌉, K, d), zeros after the end."""
        steps, width = x.shape[1:]
        size = min(self.context, steps)
        padded = torch.nn.functional.pad(x, (0, 0, 0, -steps % size))
        return padded.reshape(-1, size, width)

    def rows_of(self, outputs: Tensor, batch: Batch) -> Outputs:
        """Of each trajectory the actions (steps, dim a)."""
        found = outputs.detach().float().cpu().numpy()
        return [one[:steps] for one, steps in zip(found, batch["steps"].tolist(), strict=True)]

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        """Actions; a line more of held-out ones has what their policy gained in the simulator. Of
        trajectories to go on with the next action (1, dim a)."""
        if "first" not in batch:
            return list(self._next(model, batch)[:, None].float().cpu().numpy())
        found = self.rows_of(self.loss(model, batch)[1], batch)
        if self.simulator is None:
            return found
        policy = Policy(model, batch["to_go"][:, 0], self.context, self.scale)
        gained = imported(self.simulator)(batch["first"].cpu().numpy(), policy)
        return [
            np.vstack([actions, np.full_like(actions[:1], total)])
            for actions, total in zip(found, np.asarray(gained), strict=True)
        ]

    def _next(self, model: Any, batch: Batch) -> Tensor:
        """(n, dim a) from the last K steps of each, as a policy sees them."""
        size = min(self.context, batch["states"].shape[1])
        begin = (batch["steps"] - size).clamp(min=0)
        times = begin[:, None] + torch.arange(size, device=begin.device)
        seen = {
            name: batch[name].gather(1, times[..., None].expand(-1, -1, batch[name].shape[-1]))
            for name in ("states", "actions", "to_go")
        }
        last = batch["steps"] - begin - 1
        return acts(model, seen, times)[torch.arange(len(last), device=last.device), last]

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[tuple[float, ...]]:
        """The mean squared error of actions, and what the policy gained by itself."""
        found = []
        for said, wanted in zip(outputs, rows["actions"], strict=True):
            error = float(np.square(said[: len(wanted)] - np.asarray(wanted)).mean())
            found.append((error, *(float(one[0]) for one in said[len(wanted) :])))
        return found

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[float]:
        """What was gained in the data."""
        return [float(sum(rewards)) for rewards in rows["rewards"]]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        """The next action."""
        return [
            {"step": len(states), "action": [round(float(x), 6) for x in said[-1]]}
            for said, states in zip(outputs, rows["states"], strict=True)
        ]

    def shown(self, rows: Dataset, index: int) -> str:
        first = ", ".join(f"{x:.3g}" for x in rows["states"][index][0])
        return f"{len(rows['states'][index])} steps from ({first})"


class Policy:
    """A model that acts in a simulator: `act(states, rewards)`, step by step, n side by side.

    `wanted` (n,) is the scaled return to gain from the first step on.
    """

    def __init__(self, model: Any, wanted: Tensor, context: int, scale: float) -> None:
        self.model, self.context, self.scale = model, context, scale
        self.to_go = [wanted.reshape(-1, 1)]
        self.states: list[Tensor] = []
        self.actions: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, states: np.ndarray, rewards: np.ndarray | None) -> np.ndarray:
        """Actions (n, dim a) for states (n, dim s), after `rewards` (n,) for the ones before."""
        like, last = self.to_go[0], self.to_go[-1]
        if rewards is not None:
            gained = torch.as_tensor(np.asarray(rewards)).to(like).reshape(-1, 1)
            self.to_go.append(last - gained / self.scale)
        self.states.append(torch.as_tensor(states).to(like))
        self.actions.append(like.new_zeros(len(states), self.model.config.act_dim))
        every = {"states": self.states, "actions": self.actions, "to_go": self.to_go}
        seen = {name: torch.stack(one[-self.context :], 1) for name, one in every.items()}
        steps = len(self.states)
        at = torch.arange(steps, device=like.device)[-self.context :].expand(len(states), -1)
        said = acts(self.model, seen, at)[:, -1]
        self.actions[-1] = said
        return said.float().cpu().numpy()


def acts(model: Any, seen: Mapping[str, Tensor], times: Tensor) -> Tensor:
    """Actions (n, K, dim a) from states, actions and returns to go (n, K, …) at `times` (n, K);
    what lies after the end is never seen from before it."""
    given = {"states": seen["states"], "actions": seen["actions"], "returns_to_go": seen["to_go"]}
    last = model.config.max_ep_len - 1  # of what lies after the end
    outputs: Tensor = model(**given, timesteps=times.clamp(max=last)).action_preds
    return outputs


def _padded(given: Any, steps: int, width: int) -> np.ndarray:
    out = np.zeros((steps, width), dtype=np.float32)
    if len(given):
        out[: len(given)] = np.asarray(given, dtype=np.float32).reshape(len(given), width)
    return out


@functools.cache
def policy_config(name: str) -> Any:
    config = models.configuration(name)
    if getattr(config, "model_type", None) != "decision_transformer":
        raise InputError(
            f"model {name!r} is of type {config.model_type!r}; control needs a decision_transformer"
        )
    return config


@functools.cache
def imported(place: str) -> Simulator:
    """The simulator that a `module:function` names."""
    module, _, function = str(place).partition(":")
    try:
        found = getattr(importlib.import_module(module), function or "?", None)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"simulator {place!r} cannot be imported ({error}): it is module:function, installed "
            "or on PYTHONPATH"
        ) from None
    if not callable(found):
        raise InputError(f"simulator {place!r}: module {module!r} has no function {function!r}")
    simulator: Simulator = found
    return simulator
