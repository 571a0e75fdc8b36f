"""DistributedDataParallel: two processes equal one."""

from __future__ import annotations

from pathlib import Path

import kinds
import processes
import pytest
import torch

import trimtab

EVERY = [*kinds.METHODS, *kinds.SPREAD, *kinds.SELECTIONS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not kinds.STORIES.is_dir():
        pytest.skip(f"{kinds.SHARED} is absent")
    folder = tmp_path_factory.mktemp("ddp")
    tasks = [
        (processes.train_all, processes.ddp, EVERY),
        (processes.resume_all, processes.ddp, kinds.RESUMED),
    ]
    processes.run(tasks, folder)
    return folder


@pytest.mark.parametrize("spread", EVERY, ids=str)
def test_two_processes_equal_one(trained: Path, spread: kinds.Kind) -> None:
    for optimizer in processes.optimizers(spread):
        found = processes.found_in(trained, spread, optimizer)
        expected = processes.alone(spread, optimizer)
        assert list(found) == list(expected)
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("spread", EVERY, ids=str)
def test_what_they_save_loads_in_one(trained: Path, spread: kinds.Kind) -> None:
    optimizer = processes.optimizers(spread)[-1]
    found = processes.found_in(trained, spread, optimizer)
    model = spread.adapted()
    trimtab.detach(model, "default")
    trimtab.load(model, trained / f"{spread}.{optimizer}")
    state = model.state_dict()
    assert [name for name in state if not torch.equal(state[name], found[name])] == []


def test_a_checkpoint_goes_on_to_the_same_result(trained: Path) -> None:
    processes.outcome(trained, processes.resume_all)
