"""Distilling the Knowledge in a Neural Network. Hinton, Vinyals and Dean 2015, arXiv:1503.02531.

    L = (1 - α) L_task + α T² KL( softmax(z_teacher / T) ‖ softmax(z_student / T) )
        + h mean_layers mean ( P H_student - H_teacher )²

L_task is the student's own loss, where the batch has labels (without: α = 1). T² keeps the size of
the gradient whatever T is. Hidden states are compared where `layers` names them; P is a trained map
where the widths differ, and the identity otherwise.

The student is trained by any method. The teacher is another model, or the student's own base, or
it under another adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import Reference, penalty
from trimtab.core.adapter import carries
from trimtab.core.compose import Composition
from trimtab.core.errors import InputError


def soft_targets(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """T² KL(teacher ‖ student) of logits (…, classes), the mean over rows; with a mask (…), over
    those where it is true."""
    if student.shape != teacher.shape:
        raise InputError(
            f"the student's logits have the shape {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}: both need the same classes or vocabulary, and the same inputs"
        )
    p = (teacher.float() / temperature).log_softmax(-1)
    q = (student.float() / temperature).log_softmax(-1)
    return temperature**2 * _mean(F.kl_div(q, p, reduction="none", log_target=True).sum(-1), mask)


def hidden_distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean squared difference of hidden states (…, width), over rows where a mask is true."""
    return _mean((student.float() - teacher.float()).square().mean(-1), mask)


def _mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return rows.mean()
    kept = mask.to(rows.dtype)
    return (rows * kept).sum() / kept.sum().clamp(min=1)


class Distiller(nn.Module):
    """The loss of a student beside its teacher, for any loop: `distiller(batch).backward()`.

    Its own parameters are the maps between hidden states of different widths, which train too:
    `[*trimtab.parameters(model), *distiller.parameters()]`. Student and teacher are no part of it.

    Args:
        student: a model of transformers with an adapter.
        teacher: a model that reads the same inputs; or what acts on the student when it teaches:
            an adapter's name, a composition, or None, the base alone.
        temperature: T.
        alpha: the share of the teacher against the batch's labels; 1: labels count for nothing.
        layers: which hidden state of the student follows which of the teacher, {6: 12}, counted as
            `output_hidden_states` gives them: 0 the embeddings, -1 the last.
        hidden: h, the weight of hidden states.
        positions: batch -> mask of the positions that count, where logits are one row a position.
            Left out: those of `labels` in an encoder-decoder, of `attention_mask` elsewhere.
    """

    student: Any
    teacher: Any

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Composition | None,
        *,
        temperature: float = 2.0,
        alpha: float = 0.9,
        layers: Mapping[int, int] | None = None,
        hidden: float = 1.0,
        positions: Callable[[Mapping[str, Any]], Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and 0 <= alpha <= 1 and hidden >= 0):
            raise InputError(
                "temperature is above 0, alpha from 0 to 1, hidden from 0, and they are "
                f"{temperature}, {alpha}, {hidden}"
            )
        if teacher is student:
            raise InputError("a teacher that is the student teaches nothing: name its adapter")
        other = teacher if isinstance(teacher, nn.Module) else Reference(student, teacher)
        self.__dict__["student"], self.__dict__["teacher"] = student, other
        self.temperature, self.alpha, self.hidden = temperature, alpha, hidden
        if not isinstance(layers, Mapping | None):
            raise InputError(f"layers is {{the student's: the teacher's}}, and not {layers!r:.60}")
        self.layers = dict(layers or {})
        if hidden != 1.0 and not self.layers:
            raise InputError(f"hidden={hidden} weighs hidden states, and layers names none of them")
        self.positions = positions or self._positions
        self.maps = nn.ModuleDict(self._maps())

    def _maps(self) -> dict[str, nn.Module]:
        """A map for each layer whose widths differ, by the student's layer."""
        if not self.layers:
            return {}
        narrow, wide = (one.config.hidden_size for one in (self.student, self.teacher))
        place = next(self.student.parameters()).device
        if narrow == wide:
            return {}
        return {str(layer): nn.Linear(narrow, wide, device=place) for layer in self.layers}

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch, as the student is called with it."""
        return self.losses(batch)[0]

    def losses(
        self, batch: Mapping[str, Any], model: nn.Module | None = None
    ) -> tuple[Tensor, Any]:
        """The loss, and the student's outputs; `model` is the student as a loop has wrapped it."""
        asked = {"output_hidden_states": True} if self.layers else {}
        outputs = (self.student if model is None else model)(**batch, **asked)
        own = getattr(outputs, "loss", None)
        loss = self.join(own, outputs, batch)
        if carries(self.student) and self.student.training and torch.is_grad_enabled():
            share = 1.0 if own is None else self.alpha  # the rest is in the loss of its own
            loss = loss + share * penalty(self.student)
        return loss, outputs

    def join(self, own: Tensor | None, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """The loss, for a loop that has called the student itself: from the loss that it made of
        the labels, the student's outputs (with hidden states, if `layers` says so), and the batch.
        """
        asked = {"output_hidden_states": True} if self.layers else {}
        taught, mask = self._taught({**batch, **asked}), self.positions(batch)
        rows = mask if outputs.logits.ndim > 2 else None
        loss = soft_targets(outputs.logits, taught.logits, self.temperature, rows)
        if own is not None:
            loss = self.alpha * loss + (1 - self.alpha) * own
        if self.layers:
            loss = loss + self.hidden * self._hidden(outputs, taught, mask)
        return loss

    def teach(self, trainer: Any) -> None:
        """Let a Trainer of transformers train the student on this loss, and the maps beside it."""
        trainer.compute_loss = self.compute_loss
        trainer.model_accepts_loss_kwargs = False  # a mean: the Trainer divides what accumulates
        if self.maps:
            trainer.create_optimizer().add_param_group({"params": list(self.maps.parameters())})

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        """In the place of a Trainer's own; `teach` puts it there."""
        loss, outputs = self.losses(inputs, model)
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    @torch.no_grad()
    def _taught(self, batch: Mapping[str, Any]) -> Any:
        """The teacher's outputs, without dropout; its training mode is as it was."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if "labels" in batch and self.teacher.config.is_encoder_decoder:
            inputs["labels"] = batch["labels"]  # the decoder's input follows from them
        training = [one for one in self.teacher.modules() if one.training]
        self.teacher.eval()
        try:
            return self.teacher(**inputs)
        finally:
            for one in training:
                one.training = True

    def _hidden(self, outputs: Any, taught: Any, mask: Tensor | None) -> Tensor:
        ours, theirs = _states(outputs), _states(taught)
        for states, named, whose in (
            (ours, self.layers, "student"),
            (theirs, self.layers.values(), "teacher"),
        ):
            if beyond := [one for one in named if not -len(states) <= one < len(states)]:
                raise InputError(
                    f"layers names {beyond} of the {whose}, which has hidden states 0 to "
                    f"{len(states) - 1}, or -{len(states)} to -1"
                )
        terms = []
        for layer, followed in self.layers.items():
            state = ours[layer]
            if str(layer) in self.maps:
                state = self.maps[str(layer)](state.float())
            terms.append(hidden_distance(state, theirs[followed], mask))
        return torch.stack(terms).mean()

    def _positions(self, batch: Mapping[str, Any]) -> Tensor | None:
        if self.student.config.is_encoder_decoder:
            labels = batch.get("labels")
            return batch.get("decoder_attention_mask") if labels is None else labels != -100
        return batch.get("attention_mask")


def _states(outputs: Any) -> tuple[Tensor, ...]:
    """Hidden states; of an encoder-decoder, the decoder's."""
    found = getattr(outputs, "hidden_states", None)
    return found if found is not None else outputs.decoder_hidden_states
