"""The schedules of methods, such as pruning while training, under the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from trimtab.core.training import after_backward, require_ready


class Schedule(TrainerCallback):
    """Calls `trimtab.after_backward` once in each step of the optimizer, when all its gradients are
    there: `Trainer(…, callbacks=[Schedule()])`, and the trainers of TRL likewise. Before the first
    one it asks whether the adapter is ready to be trained.
    """

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        require_ready(model)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        after_backward(model, state.global_step + 1, state.max_steps)
