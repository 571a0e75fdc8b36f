"""Two processes on one machine that train one model, for the tests of DDP and FSDP2."""

from __future__ import annotations

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


def train(model: nn.Module, optimizer: str, share: slice) -> Found:
    """A few steps over this process's share of each batch: the first gradients, and at last all
    parameters."""
    bare = trimtab.core.adapter.unwrap(model)
    stepper = OPTIMIZERS[optimizer](trimtab.parameters(model))
    found: Found = {}
    for step in range(STEPS):
        joint = kinds.batch(4 * step)
        model(**{key: value[share] for key, value in joint.items()}).loss.backward()
        if step == 0:
            trained = [(n, p) for n, p in bare.named_parameters() if p.grad is not None]
            found |= {f"gradient of {name}": whole(p.grad).clone() for name, p in trained}
        stepper.step()
        stepper.zero_grad()
    return found | gathered(dict(bare.named_parameters()))


def alone(kind: kinds.Kind, optimizer: str) -> Found:
    """One process with the joint batch: what the two must come to."""
    return train(kind.adapted().train(), optimizer, slice(None))


def _process(rank: int, task: Callable[..., None], folder: Path, rest: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    try:
        task(rank, folder, *rest)
    finally:
        dist.destroy_process_group()


def run(task: Callable[..., None], folder: Path, *rest: Any) -> None:
    """`task(rank, folder, *rest)` in both processes; an error in one is raised here."""
    torch.multiprocessing.spawn(_process, args=(task, folder, rest), nprocs=WORLD)


def train_all(
    rank: int, folder: Path, spread: Callable[[nn.Module], nn.Module], every: list[kinds.Kind]
) -> None:
    """All kinds under all optimizers; the first process writes what came out."""
    for kind in every:
        for optimizer in OPTIMIZERS:
            model = spread(kind.adapted().train())
            found = train(model, optimizer, slice(2 * rank, 2 * rank + 2))
            trimtab.save(model, folder / f"{kind}.{optimizer}")
            if rank == 0:
                torch.save(found, folder / f"{kind}.{optimizer}.pt")


def resume_all(
    rank: int, folder: Path, spread: Callable[[nn.Module], nn.Module], every: list[kinds.Kind]
) -> None:
    """Half of a run, a checkpoint, the other half; and the other half from the checkpoint."""
    for kind in every:
        run = _Run(spread(kind.adapted().train()), rank)
        run.step(range(2))
        weights, moments = get_state_dict(run.model, run.optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / str(kind))
        run.step(range(2, 4))

        again = _Run(spread(kind.adapted(seed=1).train()), rank)
        weights, moments = get_state_dict(again.model, again.optimizer)
        dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder / str(kind))
        set_state_dict(
            again.model, again.optimizer, model_state_dict=weights, optim_state_dict=moments
        )
        again.step(range(2, 4))
        kinds.assert_equal(run.state(), again.state())


class _Run:
    def __init__(self, model: nn.Module, rank: int) -> None:
        self.model, self.share = model, slice(2 * rank, 2 * rank + 2)
        self.optimizer = OPTIMIZERS["adamw"](trimtab.parameters(model))

    def step(self, steps: range) -> None:
        for step in steps:
            mine = {key: value[self.share] for key, value in kinds.batches()[step].items()}
            self.model(**mine).loss.backward()
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
    full = kinds.stories()
    trimtab.attach(full, trimtab.Full())
    with pytest.raises(trimtab.StateError, match="FSDP2 replaces all parameters"):
        trimtab.parameters(fsdp(full))


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
