"""A task of one's own over clouds of points: groups, the head, files that are broken."""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from examples.point_clouds import SIZES, TASK, clouds, network, shape

from trimtab.core.errors import InputError
from trimtab.data.clouds import points
from trimtab.evaluate.run import evaluate, predict
from trimtab.tune.run import tune
from trimtab.tune.session import read_data


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The task's module, where a user would have it."""
    shutil.copyfile(TASK, tmp_path / "point_clouds.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("point_clouds")
    del sys.modules["point_clouds"]


def test_groups_cover_the_cloud(own: ModuleType) -> None:
    """Each centre is the point farthest from those before it, and a group its nearest points."""
    x = torch.from_numpy(np.stack([shape("box", np.random.default_rng(i)) for i in (1, 2)]))
    exact = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    centres, groups = own.grouped(x, 8, 5)
    assert centres.shape == (2, 8, 3)
    assert groups.shape == (2, 8, 5, 3)
    for cloud, chosen, around in zip(x, centres, groups, strict=True):
        first = cloud[cloud.norm(dim=-1).argmax()]
        torch.testing.assert_close(chosen[0], first)
        for turn in range(1, 8):
            apart = exact(cloud, chosen[:turn]).amin(1)
            torch.testing.assert_close(chosen[turn], cloud[apart.argmax()])
        nearest = exact(chosen, cloud).sort(-1).values[:, :5]
        torch.testing.assert_close(around.norm(dim=-1), nearest, atol=1e-5, rtol=0)


def test_the_order_of_points_says_nothing(own: ModuleType) -> None:
    torch.manual_seed(0)
    net = own.PointTransformer(own.Sizes(labels=("a", "b"), **SIZES)).eval()
    x = torch.from_numpy(shape("box", np.random.default_rng(0)))[None]
    torch.testing.assert_close(net(x), net(x[:, torch.randperm(100)]))


def test_shapes_are_learnt(quick: Callable[..., Any], own: ModuleType, tmp_path: Path) -> None:
    """With a new head, which is measured alone, too."""
    data = clouds(tmp_path / "shapes", each=40)
    config = quick(
        task="point_clouds:PointClouds",
        model=network(tmp_path / "net"),
        data=data,
        max_steps=40,
        eval_every=20,
        lr=1e-2,
        attention="auto",
    )
    metrics = tune(config, quiet=True)
    assert metrics["baselines"]["head"] is not None
    assert metrics["validation"]["value"] > 0.85
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    new = tmp_path / "new"
    new.mkdir()
    np.savetxt(new / "a.xyz", points(str(data.parent / "box0.npy")))
    (told,) = predict(config.out, str(new))
    assert told["points"] == "a.xyz"
    assert told["label"] in ("ball", "box")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda path: path.write_bytes(b"nothing"), "cannot be read as points"),
        (lambda path: np.save(path, [[1, 2], [3, 4]]), r"cannot be read as points .*\(2, 2\)"),
        (lambda path: np.save(path, np.array([{}, {}])), "cannot be read as points"),
        (lambda path: np.save(path, np.ones((9, 3))), "has 1 different points"),
        (
            lambda path: np.save(path, [[0, 0, 0]] * 5 + [[np.nan, 1, 2]]),
            "a point that is nowhere, number 6",
        ),
        (lambda path: path.unlink(), "there is no file"),
    ],
)
def test_clouds_that_are_broken(
    quick: Callable[..., Any],
    own: ModuleType,
    tmp_path: Path,
    made: Callable[[Path], Any],
    message: str,
) -> None:
    data = clouds(tmp_path / "shapes", each=3)
    made(data.parent / "box1.npy")
    config = quick(task="point_clouds:PointClouds", model=network(tmp_path / "net"), data=data)
    with pytest.raises(InputError, match=rf"shapes\.csv, line 5: .*{message}"):
        read_data(config)


def test_a_model_that_is_none(own: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json does not describe a point transformer"):
        own.PointClouds().processor(str(tmp_path))


def test_a_network_of_ones_own_has_no_attention_to_choose(
    quick: Callable[..., Any], own: ModuleType, tmp_path: Path
) -> None:
    fields = {"model": network(tmp_path / "net"), "data": clouds(tmp_path / "shapes")}
    with pytest.raises(InputError, match=r"--attention eager: .*PointTransformer"):
        tune(quick(task="point_clouds:PointClouds", **fields), quiet=True)


def test_files_of_points(tmp_path: Path) -> None:
    x = shape("ball", np.random.default_rng(0), 6)
    np.savez(tmp_path / "one.npz", x)
    np.savez(tmp_path / "two.npz", normals=-x, points=np.concatenate([x, -x], 1))
    np.savetxt(tmp_path / "three.xyz", x)
    for name in ("one.npz", "two.npz", "three.xyz"):
        np.testing.assert_allclose(points(str(tmp_path / name)), x, rtol=1e-6)
