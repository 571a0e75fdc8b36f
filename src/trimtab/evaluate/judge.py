"""A model in training on what was held out: what checkpoints are compared by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trimtab.evaluate.metrics import METRICS
from trimtab.evaluate.predict import batches, on, precision
from trimtab.tasks.task import Encoded, stacked

if TYPE_CHECKING:
    from trimtab.tune.session import Session


@torch.no_grad()
def judge(
    session: Session,
    model: nn.Module,
    encoded: Encoded,
    rows: Any,
    collate: Callable[..., dict[str, Any]],
    over: Any = None,
) -> dict[str, float]:
    """The mean loss of the examples, and the task's metric on their rows, unless the task is
    watched by its loss. `over` has the loss and answers of a model that is not the session's own.
    """
    task, over = session.task, over or session.task
    device, training = next(model.parameters()).device, model.training
    total, given = 0.0, []
    model.eval()
    try:
        for part in batches(encoded.examples, task.eval_batch):
            batch = on(collate(part), device)
            with precision(device, session.config.autocast):
                loss, outputs = over.loss(model, batch)
                total += float(loss) * len(part)
                if not task.by_loss:
                    given.append(over.rows_of(outputs, batch))
    finally:
        model.train(training)
    found = {"eval_loss": total / len(encoded.examples)}
    if not task.by_loss:
        outputs = encoded.restore(stacked(given))
        value = METRICS[task.metric].value(session.answers(outputs, rows), session.references(rows))
        found[f"eval_{task.metric}"] = value
    return found
