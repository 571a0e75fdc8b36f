"""FSDP2 (`fully_shard`): two processes equal one."""

from __future__ import annotations

from pathlib import Path

import kinds
import processes
import pytest
import torch

import trimtab

EVERY = [*kinds.METHODS, *kinds.SPREAD]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not kinds.STORIES.is_dir():
        pytest.skip(f"{kinds.SHARED} is absent")
    folder = tmp_path_factory.mktemp("fsdp")
    tasks = [
        (processes.train_all, processes.fsdp, EVERY),
        (processes.resume_all, processes.fsdp, kinds.RESUMED),
        (processes.merge_and_back,),
        (processes.refuse_late,),
        (processes.refuse_selections,),
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


def test_a_sharded_model_merges_and_unmerges(trained: Path) -> None:
    processes.outcome(trained, processes.merge_and_back)


def test_attaching_to_a_sharded_model_is_refused(trained: Path) -> None:
    processes.outcome(trained, processes.refuse_late)


def test_methods_that_train_the_base_in_place_are_refused(trained: Path) -> None:
    processes.outcome(trained, processes.refuse_selections)
