"""Networks of diffusers that denoise pictures, and the noise that they are trained against.

A picture x₀ and noise ε ~ N(0, 1) are mixed at a time t, and the network says what was mixed:

    diffusion   x_t = √ᾱ_t x₀ + √(1 - ᾱ_t) ε      of it ε, x₀, or v = √ᾱ_t ε - √(1 - ᾱ_t) x₀
    flow        x_t = (1 - σ_t) x₀ + σ_t ε        of it the velocity ε - x₀

Diffusion: Ho et al. 2020, arXiv:2006.11239; v: Salimans and Ho 2022, arXiv:2202.00512. Flow
matching: Lipman et al. 2022, arXiv:2210.02747. Which it is, and the noise at each time, the
checkpoint's scheduler tells.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.data import media
from trimtab.tasks import models

NETWORKS = ("unet", "transformer")
INDEX, CONFIG = "model_index.json", "config.json"
_TAKEN = {"self", "sample", "hidden_states", "timestep", "class_labels"}
_PLANES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Files:
    """Where a network lies, its configuration, and that of its scheduler, where there is one."""

    network: Path
    config: dict[str, Any]
    scheduler: Path | None

    @property
    def classes(self) -> int:
        """How many classes it draws; 0 where it is told of none."""
        of_transformer = self.config.get("num_embeds_ada_norm") or 0
        return int(
            self.config.get("num_class_embeds") or (of_transformer if of_transformer > 1 else 0)
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        given = self.config["sample_size"]
        return (given, given) if isinstance(given, int) else (int(given[0]), int(given[1]))


@dataclass
class Reader:
    """What makes numbers of pictures and of the `names` of classes."""

    files: Files
    names: Sequence[str] = ()

    def pixels(self, cell: media.Cell) -> np.ndarray:
        """(channels, height, width) from -1 to 1."""
        height, width = self.files.size
        picture = media.image(cell).convert(_PLANES[self.files.config["in_channels"]])
        if picture.size != (width, height):
            picture = picture.resize((width, height))
        values = np.asarray(picture, dtype=np.float32) / 127.5 - 1
        return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)

    def index(self, label: str) -> int:
        if label not in self.names:
            raise InputError(f"label {label!r} is none of the classes: {', '.join(self.names)}")
        return list(self.names).index(label)


@functools.cache
def files(name: str) -> Files:
    """A pipeline's folder, the folder of a network alone, or a name on the hub."""
    path = Path(name).expanduser()
    if not path.is_dir():
        path = _fetched(name)
    if (path / INDEX).exists():
        return _of_pipeline(name, path)
    if not (path / CONFIG).exists():
        raise InputError(
            f"model folder {name!r} holds neither {INDEX} nor {CONFIG}: is it one of diffusers?"
        )
    return _checked(name, Files(path, _read(path / CONFIG), None))


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    found = models.resolve(name)  # tells of a folder that is not there
    wanted = ["*.json", *(f"{network}/*.safetensors" for network in NETWORKS)]
    try:
        folder = snapshot_download(found, allow_patterns=wanted, **models.hub_options(found))
    except (OSError, ValueError) as error:
        raise models.loading_error(name, error) from None
    return Path(folder)


def _of_pipeline(name: str, path: Path) -> Files:
    parts = {key: value for key, value in _read(path / INDEX).items() if isinstance(value, list)}
    network = next((part for part in NETWORKS if part in parts), None)
    if network is None:
        raise InputError(f"model {name!r} has neither of {', '.join(NETWORKS)} in its {INDEX}")
    beside = [p for p, of in parts.items() if of[0] and p not in (network, "scheduler")]
    if beside:
        raise InputError(
            f"model {name!r} draws from more than pixels and classes: it has {', '.join(beside)}. "
            f"Give the folder of a network that has not, or adapt its {network} in a loop of your "
            "own (docs/loops.md)"
        )
    config = _read(path / network / CONFIG)
    return _checked(name, Files(path / network, config, path / "scheduler"))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    return dict(found)


def _checked(name: str, found: Files) -> Files:
    kind = _class(name, found.config)
    asked = inspect.signature(kind.forward).parameters
    more = [one for one, of in asked.items() if of.default is of.empty and one not in _TAKEN]
    if more or "timestep" not in asked:
        what = f" (it asks for {', '.join(more)})" if more else ""
        raise InputError(
            f"model {name!r} is a {kind.__name__}, which does not denoise a picture from its time "
            f"and class alone{what}: give a UNet2DModel or a DiTTransformer2DModel"
        )
    if found.config.get("in_channels") not in _PLANES:
        raise InputError(
            f"model {name!r} takes {found.config.get('in_channels')} channels: those of a picture "
            "are 1 or 3"
        )
    if found.config.get("sample_size") is None:
        raise InputError(f"model {name!r} does not say its sample_size, in {CONFIG}")
    return found


def _class(name: str, config: dict[str, Any]) -> Any:
    diffusers, kind = library(), str(config.get("_class_name"))
    found = getattr(diffusers, kind, None)
    if found is None or not issubclass(found, nn.Module):
        raise InputError(f"model {name!r} is of class {kind!r}, which diffusers has not")
    return found


def library() -> Any:
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it tells of every part it has not
    try:
        import diffusers
    except ModuleNotFoundError:
        raise InputError(
            "pictures are drawn by diffusers, which is not installed: pip install 'trimtab[tasks]'"
        ) from None
    return diffusers


def network(name: str, dtype: torch.dtype, dropout: bool) -> nn.Module:
    """The network, which knows its noise as `noise`."""
    found = files(name)
    kind = _class(name, found.config)
    try:
        model: nn.Module = kind.from_pretrained(
            str(found.network), torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise models.loading_error(name, error) from None
    model.register_to_config(_name_or_path=name)  # type: ignore[operator]  # the user's name for it
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    model.noise = noise(name)  # type: ignore[assignment]  # a loss is asked with the model alone
    return model


class Noise:
    """What a scheduler of diffusers mixes with pictures, and how pictures are drawn from it."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.flows = not hasattr(scheduler, "alphas_cumprod")
        steps = int(scheduler.config.num_train_timesteps)
        self.times: Tensor = scheduler.timesteps.flip(0) if self.flows else torch.arange(steps)

    def mixed(self, x: Tensor, noise: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (n, c, h, w) with noise, at the places `at` (n,) of all times, from clean to
        noise: the mixture, the times (n,) as the network takes them, and what it should say."""
        times = self.times.to(x.device)[at]
        if self.flows:
            return self.scheduler.scale_noise(x, times, noise), times, noise - x
        mixed = self.scheduler.add_noise(x, noise, times)
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return mixed, times, self.scheduler.get_velocity(x, noise, times)
        return mixed, times, noise if kind == "epsilon" else x

    @torch.no_grad()
    def drawn(self, model: Any, x: Tensor, classes: Tensor | None, steps: int) -> Tensor:
        """Pictures (n, c, h, w) between -1 and 1, from noise, in so many steps: of diffusion by
        DDIM (Song et al. 2020, arXiv:2010.02502), of a flow by Euler's method."""
        diffusers = library()
        kind = diffusers.FlowMatchEulerDiscreteScheduler if self.flows else diffusers.DDIMScheduler
        scheduler = kind.from_config(self.scheduler.config)
        scheduler.set_timesteps(steps, device=x.device)
        for time in scheduler.timesteps:
            x = scheduler.step(said(model, x, time.expand(len(x)), classes), time, x).prev_sample
        return x.clamp(-1, 1)


def noise(name: str) -> Noise:
    """The checkpoint's own; that of DDPM for a network without one."""
    diffusers, folder = library(), files(name).scheduler
    if folder is None:
        return Noise(diffusers.DDPMScheduler())
    told = _read(folder / "scheduler_config.json")
    flows = "FlowMatch" in str(told.get("_class_name"))
    known = diffusers.FlowMatchEulerDiscreteScheduler if flows else diffusers.DDPMScheduler
    return Noise(known.from_pretrained(folder))


def said(model: Any, x: Tensor, times: Tensor, classes: Tensor | None) -> Tensor:
    """What the network says of pictures (n, c, h, w) at their times (n,); of one that tells its
    variance, too, the mean. A transformer's norms ask for a class even where there is one only."""
    own = next(model.parameters()).dtype
    told = getattr(model, "config", {})
    if classes is None and told.get("num_embeds_ada_norm") == 1:
        classes = torch.zeros_like(times, dtype=torch.int64)
    out: Tensor = model(x.to(own), timestep=times, class_labels=classes).sample
    return out[:, : x.shape[1]].float()
