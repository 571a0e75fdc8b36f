"""Law 11: changing the active adapters between a forward and its backward raises."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trimtab import LoRA
from trimtab.adapt import activate, attach, detach, merge
from trimtab.core.errors import StateError, TrimtabError
from trimtab.core.method import Method
from trimtab.testing.architectures import Architecture
from trimtab.testing.laws.checkpointing import checkpoint, checkpointed_loss
from trimtab.testing.trial import (
    NotHere,
    Trial,
    ensure,
    gradients,
)


def _none_and_back(model: nn.Module) -> None:
    activate(model, None)
    activate(model, "default")


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "activating another": lambda model: activate(model, "second"),
    "activating none": lambda model: activate(model, None),
    "activating none and back": _none_and_back,
    "attaching": lambda model: attach(model, LoRA(), name="third"),
    "detaching": lambda model: detach(model, "default"),
    "merging": merge,
}


def switching_before_backward_raises(method: Method, architecture: Architecture) -> None:
    """Whatever changes what is active, with blocks checkpointed or not; nothing is accumulated."""
    modes = (None, False, True)
    for index, (name, change) in enumerate(CHANGES.items()):
        trial = Trial(method, architecture)
        trial.model.train()
        attach(trial.model, LoRA(), name="second")
        trial.perturbed()
        mode = modes[(index + len(architecture.name)) % len(modes)]
        if mode is not None:
            _try_checkpointing(trial, reentrant=mode)
        loss = checkpointed_loss(trial)
        try:
            change(trial.model)
        except TrimtabError:  # what does not merge cannot change anything by it
            ensure(name == "merging", f"{name} is refused")
            continue
        try:
            loss.backward()
        except StateError as error:
            ensure("backward" in str(error), f"after {name}, another error: {error}")
        else:
            raise AssertionError(f"{name} between forward and backward goes unnoticed")
        ensure(gradients(trial.model) == {}, f"after {name} gradients were accumulated")


def _try_checkpointing(trial: Trial, *, reentrant: bool) -> None:
    try:
        checkpoint(trial.model, reentrant=reentrant)
    except NotHere:
        return


def switching_after_backward_is_free(method: Method, architecture: Architecture) -> None:
    """Once its backward is done a forward binds nobody."""
    trial = Trial(method, architecture)
    trial.attach()
    for composition in (None, "default", None, "default"):
        activate(trial.model, composition)
        if composition:
            trial.loss().backward()
    ensure(gradients(trial.model), "nothing was trained")
