"""DistributedDataParallel: two processes equal one."""

from __future__ import annotations

from pathlib import Path

import kinds
import processes
import pytest
import torch

import trimtab


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not kinds.STORIES.is_dir():
        pytest.skip(f"{kinds.SHARED} is absent")
    folder = tmp_path_factory.mktemp("ddp")
    processes.run(processes.train_all, folder, processes.ddp, kinds.METHODS)
    return folder


@pytest.mark.parametrize("optimizer", processes.OPTIMIZERS)
def test_two_processes_equal_one(trained: Path, kind: kinds.Kind, optimizer: str) -> None:
    found = torch.load(trained / f"{kind}.{optimizer}.pt", weights_only=True)
    expected = processes.alone(kind, optimizer)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_they_save_loads_in_one(trained: Path, kind: kinds.Kind) -> None:
    found = torch.load(trained / f"{kind}.adamw.pt", weights_only=True)
    model = kind.base()
    trimtab.load(model, trained / f"{kind}.adamw")
    named = dict(model.named_parameters())
    assert [name for name in named if not torch.equal(named[name], found[name])] == []


def test_a_checkpoint_goes_on_to_the_same_result(tmp_path: Path) -> None:
    processes.run(processes.resume_all, tmp_path, processes.ddp, kinds.METHODS)
