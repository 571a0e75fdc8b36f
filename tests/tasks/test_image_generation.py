"""Image generation: losses of diffusion and flow against their equations, runs, pictures drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import unconditional_image_generation as example

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import denoisers, lookup
from trimtab.tune.config import Config
from trimtab.tune.run import tune

pytest.importorskip("diffusers")
TASK = "unconditional-image-generation"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawing")
    example.prepare(folder)
    example.transformer(folder / "models" / "dit")
    example.unet(folder / "models" / "v", kind="v_prediction", classes=None)
    return folder


@pytest.mark.parametrize("name", ["unet", "v"])
def test_the_mixture_of_diffusion(made: Path, name: str) -> None:
    noise = denoisers.noise(str(made / "models" / name))
    x, e = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    at = torch.tensor([0, 500, 999])
    mixed, times, target = noise.mixed(x, e, at)
    betas = torch.linspace(1e-4, 0.02, 1000)  # of DDPM
    kept = (1 - betas).cumprod(0)[at].view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, kept.sqrt() * x + (1 - kept).sqrt() * e)
    velocity = kept.sqrt() * e - (1 - kept).sqrt() * x
    torch.testing.assert_close(target, e if name == "unet" else velocity)
    assert times.tolist() == [0, 500, 999]


def test_the_mixture_of_a_flow(made: Path) -> None:
    noise = denoisers.noise(str(made / "models" / "dit"))
    x, e = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    mixed, times, target = noise.mixed(x, e, torch.tensor([249, 999]))
    share = torch.tensor([0.25, 1.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, (1 - share) * x + share * e)
    torch.testing.assert_close(target, e - x)
    assert times.tolist() == [250, 1000]


def test_a_perfect_network_draws_the_picture(made: Path) -> None:
    """Of one that says what leads to a picture from wherever it is, the picture comes out."""
    noise = denoisers.noise(str(made / "models" / "dit"))
    wanted = torch.linspace(-0.9, 0.9, 16).view(1, 1, 4, 4)

    class Perfect(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, timestep: torch.Tensor, class_labels: None) -> object:
            said = (x - wanted) / (timestep.view(-1, 1, 1, 1) / 1000)
            return type("Said", (), {"sample": said})

    drawn = noise.drawn(Perfect(), torch.randn(2, 1, 4, 4), None, 7)
    torch.testing.assert_close(drawn, wanted.expand(2, -1, -1, -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_run_learns_and_is_measured_again(
    made: Path, quick: Callable[..., Config], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    settings = {"model": made / "models" / name, "data": made / "data" / "bars", "lr": 1e-2}
    settings |= {"attention": "auto", "max_steps": 12}  # diffusers chooses its own
    config = quick(**settings, task=TASK, task_arg={"steps": 3})
    told = tune(config, quiet=True)
    assert told["gain_over"]["base"]["high"] < 0  # the loss is less on every drawn sample
    again = evaluate(config.out, None, "test")
    assert again["value"] == told["test"]
    rows = [{"label": "lying", "seed": 5, "to": f"{name}-{i}.png"} for i in range(2)]
    rows.append({"label": "upright", "seed": 5, "to": f"{name}-2.png"})
    (made / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    drawn = predict(config.out, str(made / "asked.jsonl"))
    from PIL import Image

    one, same, other = (np.asarray(Image.open(row["file"])) for row in drawn)
    assert one.shape == (example.SIZE, example.SIZE)
    assert (one == same).all()
    assert (one != other).any()  # of the other class


def test_by_the_command_line(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = {"task": TASK, "model": made / "models" / "v", "data": made / "data" / "bars"}
    given |= {"out": out, "max-steps": 2, "task-arg": "steps=2"}
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "trimtab"]
    told = subprocess.run(
        [*command, "tune", *flags, "--json"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.splitlines()[-1])["metric"] == "denoising_loss"
    drawn = subprocess.run(
        [*command, "predict", str(out), "--data", "-"],
        input='{"seed": 3}\n{"seed": 4}\n',
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert drawn.returncode == 0, drawn.stderr
    assert [json.loads(line) for line in drawn.stdout.splitlines()] == [
        {"file": "drawn/1.png", "seed": 3},
        {"file": "drawn/2.png", "seed": 4},
    ]
    assert (tmp_path / "drawn" / "2.png").stat().st_size


def test_classes_by_number_and_by_name(made: Path) -> None:
    task, name = lookup(TASK), str(made / "models" / "unet")
    assert task.order(name, ["1"]) == ["0", "1"]
    assert task.order(name, ["lying", "upright"]) == ["lying", "upright"]
    with pytest.raises(InputError, match=r"3 labels, and '.*' has 2 classes"):
        task.order(name, ["a", "b", "c"])
    assert "no label" in str(task.unfit({"image": "a.png", "label": ""}, name))


def test_models_that_are_none(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither model_index\.json nor config\.json"):
        denoisers.files(str(tmp_path))
    index = {"unet": ["diffusers", "UNet2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), "utf8")
    with pytest.raises(InputError, match="more than pixels and classes: it has vae"):
        denoisers.files(str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}', "utf8")
    with pytest.raises(InputError, match="asks for encoder_hidden_states"):
        denoisers.files(str(other))
