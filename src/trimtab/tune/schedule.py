"""The schedules of methods, such as pruning while training, under the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from trimtab.core.training import after_backward


class Schedule(TrainerCallback):
    """Calls `trimtab.after_backward` once in each step of the optimizer, when all its gradients are
    there: `Trainer(…, callbacks=[Schedule()])`, and the trainers of TRL likewise.
    """

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        after_backward(model, state.global_step + 1, state.max_steps)
