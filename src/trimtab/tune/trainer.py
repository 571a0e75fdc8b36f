"""transformers' Trainer, taught that an adapter is what is trained, saved and resumed."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from trimtab.core.adapter import Adapter, carries
from trimtab.core.errors import TrimtabError
from trimtab.core.training import grouped, penalty
from trimtab.store.files import read_json, read_tensors, write_json, write_tensors
from trimtab.tune.augmenting import Augmented
from trimtab.tune.replicas import Replicas

TENSORS = "adapter.safetensors"
MEMORY = "memory.json"
COMPLETE = "complete"
_WORST = -1e300  # JSON has no infinity
_DIVERGED = 1e4  # no cross entropy that still learns is so large


@dataclass
class Memory:
    """What a run knows beyond the Trainer's state; kept in every checkpoint.

    `seconds` of training over all the pieces of an interrupted run, of which `waited_for_data` were
    spent without a batch; the best validation metric (with its sign turned where less is better),
    its step, and how many evaluations have passed since without a better one.
    """

    seconds: float = 0.0
    waited_for_data: float = 0.0
    best: float = _WORST
    best_step: int = 0
    waited: int = 0

    def exhausted(self, patience: int | None) -> bool:
        return patience is not None and self.waited >= patience


class Best(TrainerCallback):
    """Keeps the adapter of the best validation metric, and stops when none better has come for
    long. With `last`, the newest counts as the best: one that is pruned to the end is complete only
    then.
    """

    def __init__(
        self,
        memory: Memory,
        adapter: Adapter,
        metric: str,
        patience: int | None,
        *,
        higher: bool = True,
        last: bool = False,
    ) -> None:
        self.memory, self.adapter, self.metric, self.patience = memory, adapter, metric, patience
        self.sign, self.last = 1 if higher else -1, last

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before, self.started = self.memory.seconds, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.memory.seconds = self.before + time.perf_counter() - self.started
        if state.global_step >= state.max_steps:  # the last step counts, wherever it falls
            control.should_evaluate = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        value = self.sign * metrics[f"eval_{self.metric}"]
        value = _WORST if math.isnan(value) else value  # what is not defined is worse than any
        if self.last or value > self.memory.best or not self.memory.best_step:
            self.memory.best, self.memory.best_step = value, state.global_step
            self.memory.waited = 0
            write_tensors(best_folder(args.output_dir) / TENSORS, self.adapter.tensors())
        else:
            self.memory.waited += 1
        if self.memory.exhausted(self.patience):
            control.should_training_stop = True


def best_folder(checkpoints: str | Path) -> Path:
    return Path(checkpoints) / "best"


class LengthGroups(Sampler[int]):
    """Batches of like lengths in random order: examples sorted by length, those of one length
    shuffled, cut into batches, the batches shuffled; a last one that is not full stays last. Drawn
    anew each epoch from (seed, epoch) alone, so that a resumed run meets the same batches as one
    that was never stopped. With `anew`, an example has another index in each epoch: i + epoch · n.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, *, anew: bool = False
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0
        self.anew = anew

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        shuffled = torch.randperm(len(self.lengths), generator=generator).tolist()
        ordered = torch.tensor(sorted(shuffled, key=lambda i: self.lengths[i]), dtype=torch.long)
        rest = len(ordered) % self.batch_size
        last = int(torch.randint(len(ordered) - rest + 1, (), generator=generator)) if rest else 0
        whole = torch.cat([ordered[:last], ordered[last + rest :]]).split(self.batch_size)
        turns = (
            torch.randperm(len(whole), generator=generator).tolist() if len(ordered) > rest else []
        )
        batches = [*(whole[turn] for turn in turns), ordered[last : last + rest]]
        first = self.epoch * len(self.lengths) if self.anew else 0
        return iter((torch.cat(batches) + first).tolist())


class AdapterTrainer(Trainer):
    """Trains one adapter. Checkpoints hold the adapter, the optimizer and the state, never the
    base; one counts from the moment its marker is written, so that a killed process leaves the last
    whole one.
    """

    def __init__(
        self,
        *args: Any,
        adapter: Adapter,
        task: Any,
        memory: Memory,
        judge: Callable[[nn.Module], dict[str, float]] | None = None,
        distiller: Any = None,
        replicas: Replicas | None = None,
        **kwargs: Any,
    ) -> None:
        self.adapter, self.task, self.memory = adapter, task, memory
        self.judge, self.distiller, self.replicas = judge, distiller, replicas
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss below is a mean over the micro-batch

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """With the learning rates that the method asks for."""
        made = self.optimizer is not None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if (rates := self.adapter.rates()) and not made:
            optimizer.param_groups = [
                one for group in optimizer.param_groups for one in grouped(group, rates)
            ]
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any
    ) -> Any:
        loss, outputs = self.task.loss(model, inputs)
        if model.training and self.distiller is not None:
            given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
            loss = self.distiller.join(loss, outputs, given)
        if model.training and carries(model):
            loss = loss + penalty(model)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """In the way in which every reported number is computed."""
        assert self.judge is not None
        found = self.judge(self.model)
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The next batches; until they are there, nothing is computed."""
        began = time.perf_counter()
        found = super().get_batch_samples(*args, **kwargs)
        self.memory.waited_for_data += time.perf_counter() - began
        return found

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.backward(model, inputs, *args, **kwargs)
        # Reading the loss makes an accelerator wait, so that there it is read now and then.
        if loss.device.type == "cpu" or self.state.global_step % 10 == 0:
            value = loss.item()
            if not math.isfinite(value) or value > _DIVERGED:
                raise self.diverged(value)
        return loss

    def backward(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a micro-batch, its gradients added to the adapter's."""
        if self.replicas is None:
            return super().training_step(model, inputs, *args, **kwargs)
        share = 1 / self.current_gradient_accumulation_steps
        return self.replicas.backward(self._prepare_inputs(inputs), share)

    def diverged(self, loss: float) -> TrimtabError:
        return TrimtabError(
            f"training diverged: the loss is {loss} at step {self.state.global_step + 1} with "
            f"learning rate {self.args.learning_rate:g}. Start again with a lower --lr (a third, "
            "say); the checkpoints written before are whole"
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = self.train_dataset if train_dataset is None else train_dataset
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        anew = isinstance(data, Augmented)
        lengths = [example["length"] for example in (data.examples if anew else data)]
        return LengthGroups(lengths, size, self.args.seed, anew=anew)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            write_json(folder / MEMORY, asdict(self.memory))
            (folder / COMPLETE).touch()
        except (OSError, RuntimeError, TrimtabError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise TrimtabError(
                f"the checkpoint at step {self.state.global_step} cannot be written: {error}. "
                "Make room, then go on with --resume; the checkpoint before it is whole"
            ) from None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / TENSORS, self.adapter.tensors())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore(self.adapter, Path(resume_from_checkpoint))


def restore(adapter: Adapter, checkpoint: Path) -> None:
    """Read a checkpoint's tensors back into the adapter, in place."""
    saved = read_tensors(checkpoint / TENSORS)
    with torch.no_grad():
        for name, tensor in adapter.tensors().items():
            tensor.copy_(saved[name])


def recall(checkpoint: Path | None) -> Memory:
    """The memory that a checkpoint holds; a fresh one without a checkpoint."""
    return Memory(**read_json(checkpoint / MEMORY)) if checkpoint else Memory()


def tokens_at_end(checkpoint: Path | None, memory: Memory, patience: int | None) -> int | None:
    """The tokens trained on, if training had come to its end at this checkpoint; None otherwise.
    The Trainer itself always takes one more step when it resumes."""
    state = read_json(checkpoint / TRAINER_STATE_NAME) if checkpoint else None
    if state is None:
        return None
    over = state["global_step"] >= state["max_steps"] or memory.exhausted(patience)
    return int(state["num_input_tokens_seen"]) if over else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, after clearing away what a killed process left half written."""
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for path in found.values():
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
    whole = {step: path for step, path in found.items() if path.exists()}
    return whole[max(whole)] if whole else None
