"""Two processes on one machine that train one model, for the tests of DDP and FSDP2."""

from __future__ import annotations

import datetime
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cases
import kinds
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import trimtab
from trimtab.core.sharded import whole

WORLD = 2
STEPS = 3
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}
Found = dict[str, Tensor]
Task = tuple[Any, ...]
"""A function of (rank, folder, *rest), and the rest."""


def optimizers(kind: kinds.Kind) -> list[str]:
    """Adam divides by a gradient's size, and so makes rounding visible: where laws have parameters
    with hardly any gradient, plain descent compares better."""
    return list(OPTIMIZERS) if kind in kinds.METHODS else ["sgd"]


def found_in(folder: Path, kind: kinds.Kind, optimizer: str) -> Found:
    found = torch.load(folder / f"{kind}.{optimizer}.pt", weights_only=True)
    assert not isinstance(found, str), found
    return found


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp(model: nn.Module) -> nn.Module:
    """Block by block, then what is left: embeddings, the output layer, and whatever lives at the
    model's root, such as parameters that an adapter shares between its sites."""
    blocks = model.model.layers if hasattr(model, "model") else model.transformer.h
    for block in blocks:
        fully_shard(block)
    return fully_shard(model)


def gathered(state: Found) -> Found:
    return {name: whole(tensor).clone() for name, tensor in state.items()}


def train(kind: kinds.Kind, model: nn.Module, optimizer: str, share: slice) -> Found:
    """A few steps over this process's share of each batch: the first gradients, and at last the
    whole state."""
    bare = trimtab.core.adapter.unwrap(model)
    stepper = OPTIMIZERS[optimizer](trimtab.parameters(model))
    found: Found = {}
    for step in range(STEPS):
        torch.manual_seed(step)  # masks are drawn alike in all processes
        model(**kind.batch(4 * step, share)).loss.backward()
        if step == 0:
            trained = [(n, p) for n, p in bare.named_parameters() if p.grad is not None]
            found |= {f"gradient of {name}": whole(p.grad).clone() for name, p in trained}
        trimtab.after_backward(model, step + 1, STEPS)
        stepper.step()
        stepper.zero_grad()
    return found | gathered(bare.state_dict())


def alone(kind: kinds.Kind, optimizer: str) -> Found:
    """One process with the joint batch: what the two must come to."""
    return train(kind, kind.adapted().train(), optimizer, slice(None))


def _process(rank: int, tasks: Sequence[Task], folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    # Of strides along dimensions of size one, which no gradient depends on.
    warnings.filterwarnings("ignore", ".*Grad strides do not match bucket view strides.*")
    store = dist.FileStore(str(folder / "store"), WORLD)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=limit)
    try:
        for task, *rest in tasks:
            told = ""
            try:
                task(rank, folder, *rest)
            except Exception:
                told = traceback.format_exc()
            (folder / f"{task.__name__}.{rank}").write_text(told)
    finally:
        dist.destroy_process_group()


def run(tasks: Sequence[Task], folder: Path) -> None:
    """All tasks in one pair of processes, which takes longer to start than to run. What each came
    to is asked of `outcome`."""
    torch.multiprocessing.spawn(_process, args=(tasks, folder), nprocs=WORLD)


def outcome(folder: Path, task: Callable[..., None]) -> None:
    """Raise what a task raised, if it did."""
    for rank in range(WORLD):
        told = (folder / f"{task.__name__}.{rank}").read_text()
        assert not told, told


def train_all(
    rank: int, folder: Path, spread: Callable[[nn.Module], nn.Module], every: list[kinds.Kind]
) -> None:
    """Every kind under every optimizer that it is tried with; the first process writes what came
    out, or the error."""
    for kind in every:
        for optimizer in optimizers(kind):
            try:
                model = spread(kind.adapted().train())
                found: Any = train(kind, model, optimizer, slice(2 * rank, 2 * rank + 2))
                trimtab.save(model, folder / f"{kind}.{optimizer}", name="default")
            except Exception:
                found = traceback.format_exc()
            if rank == 0:
                torch.save(found, folder / f"{kind}.{optimizer}.pt")


def resume_all(
    rank: int, folder: Path, spread: Callable[[nn.Module], nn.Module], every: list[kinds.Kind]
) -> None:
    """Half of a run, a checkpoint, the other half; and the other half from the checkpoint."""
    for kind in every:
        run = _Run(kind, spread(kind.adapted().train()), rank)
        run.step(range(2))
        weights, moments = get_state_dict(run.model, run.optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / str(kind))
        run.step(range(2, 4))

        again = _Run(kind, spread(kind.adapted(seed=1).train()), rank)
        weights, moments = get_state_dict(again.model, again.optimizer)
        dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder / str(kind))
        set_state_dict(
            again.model, again.optimizer, model_state_dict=weights, optim_state_dict=moments
        )
        again.step(range(2, 4))
        kinds.assert_equal(run.state(), again.state())


class _Run:
    def __init__(self, kind: kinds.Kind, model: nn.Module, rank: int) -> None:
        self.kind, self.model, self.share = kind, model, slice(2 * rank, 2 * rank + 2)
        self.optimizer = OPTIMIZERS["adamw"](trimtab.parameters(model))

    def step(self, steps: range) -> None:
        for step in steps:
            self.model(**self.kind.batch(4 * step, self.share)).loss.backward()
            trimtab.after_backward(self.model, step + 1, 4)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state(self) -> Found:
        return gathered(self.model.state_dict())


def refuse_late(rank: int, folder: Path) -> None:
    """What is put on a sharded model would train apart in every process."""
    trimtab.save(kinds.METHODS[0].adapted(), folder / "adapter")
    model = fsdp(kinds.stories())
    for verb in (
        lambda: trimtab.attach(model, trimtab.LoRA()),
        lambda: trimtab.load(model, folder / "adapter"),
    ):
        with pytest.raises(trimtab.InputError, match="then shard"):
            verb()


def refuse_selections(rank: int, folder: Path) -> None:
    """What trains the base's own parameters would go on with those that FSDP2 has put away; so
    says whoever asks, also where a loop has found the new ones by itself."""
    for kind in kinds.SELECTIONS:
        model = fsdp(kind.adapted())
        for verb in (
            lambda model=model: trimtab.parameters(model),
            lambda model=model, to=folder / str(kind): trimtab.save(model, to),
        ):
            with pytest.raises(trimtab.StateError, match="FSDP2 replaces all parameters"):
                verb()


def merge_and_back(rank: int, folder: Path) -> None:
    """Merged, the sharded model computes what it computed before, also when it has been gathered
    anew; unmerged, bit for bit."""
    for kind in kinds.HEADLESS:
        model = kind.adapted().eval()
        kinds.move(kinds.adapter_of(model))
        fsdp(model)
        expected, base = cases.logits(model, kinds.batch()), kinds.base_state(model)
        trimtab.merge(model)
        torch.testing.assert_close(
            cases.logits(model, kinds.batch()), expected, atol=1e-4, rtol=1e-4
        )
        model.reshard()
        torch.testing.assert_close(
            cases.logits(model, kinds.batch()), expected, atol=1e-4, rtol=1e-4
        )
        trimtab.unmerge(model)
        kinds.assert_equal(gathered(kinds.base_state(model)), gathered(base))
        assert torch.equal(cases.logits(model, kinds.batch()), expected)
