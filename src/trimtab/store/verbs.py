"""The verbs `save` and `load`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.adapt import admit, install, require_parts, select
from trimtab.core.adapter import Adapter, carries, intact, record, unwrap
from trimtab.core.compose import Composition
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Method, Selection
from trimtab.core.site import Site
from trimtab.core.training import warn_unready, warn_unscheduled
from trimtab.match import sites
from trimtab.place import Built, build, place
from trimtab.store import adapterhub, compositions, diffusers, fingerprint, hf, native

_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    name: Composition | None = None,
    format: str = "trimtab",
) -> Path:
    """Write an adapter (the only one, if no name is given) as safetensors and JSON; of a
    composition, such as `Stack("a", "b")`, every adapter in a folder of its own.

    `format="peft"` writes the files of HF PEFT, `format="diffusers"` the one that pipelines of
    diffusers load; they refuse what they cannot express.
    Under FSDP2 all processes call it together. Returns the folder.
    """
    folder = Path(folder)
    if not (name is None or isinstance(name, str)):
        return _save_composition(model, folder, name, format)
    adapter = record(model).adapter(name)
    intact(model, [adapter])
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: an adapter is saved into a folder")
    formats = {"trimtab": native, "peft": hf, "diffusers": diffusers}
    if format not in formats:
        raise InputError(f"format is 'trimtab', 'peft' or 'diffusers', not {format!r}")
    warn_unscheduled(model, adapter)
    warn_unready(model, adapter)
    formats.pop(format).write(unwrap(model), adapter, folder)
    older = [file for other in formats.values() for file in (other.CONFIG, other.TENSORS)]
    for file in (*older, compositions.CONFIG):  # what lies there in another format
        (folder / file).unlink(missing_ok=True)
    return folder


def _save_composition(
    model: nn.Module, folder: Path, composition: Composition, format: str
) -> Path:
    if format != "trimtab":
        raise InputError(f"a composition is saved in Trimtab's own format, not {format!r}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: a composition is saved into a folder")
    compositions.write(model, composition, folder, lambda one, to: save(model, to, name=one))
    for file in (native.CONFIG, native.TENSORS, hf.CONFIG, hf.TENSORS, diffusers.TENSORS):
        (folder / file).unlink(missing_ok=True)
    return folder


def load(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str | None = None,
    trainable: bool = False,
    force: bool = False,
) -> Any:
    """Put a saved adapter on a model and make it the active one; the format is detected. Of a saved
    composition all adapters are, and act as it says.

    Returns the adapter, or the adapters of a composition.

    Args:
        name: what to call it here; its saved name, if left out (files of HF PEFT's own have none:
            "default").
        trainable: whether its parameters go on training.
        force: use it even though the model differs from the one it was made for.

    Raises:
        AdapterMismatch: another base; a missing, extra or misshapen tensor; an unknown site.
        InputError: files that are missing, broken or of a newer format. The model stays as it was.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: an adapter is a folder with its two files")
    if (folder / compositions.CONFIG).exists():
        if name is not None:
            raise InputError(
                f"{folder} holds a composition, whose adapters keep their names: leave `name` out"
            )
        return compositions.load(
            model,
            folder,
            lambda one, of: load(model, of, name=one, trainable=trainable, force=force),
        )
    if (folder / native.CONFIG).exists():
        adapter = _load_native(model, folder, name, force)
    elif adapterhub.holds(folder):
        saved = adapterhub.read(folder)
        kind = getattr(getattr(model, "config", None), "model_type", None)
        pairs, tensors = adapterhub.interpret(saved, _known(model), kind)
        adapter = place_read(model, name or saved.name, pairs, tensors)
    elif (folder / hf.CONFIG).exists():
        adapter = _load_hf(model, folder, name, force)
    elif (folder / diffusers.TENSORS).exists():
        adapter = _load_diffusers(model, folder, name, force)
    else:
        raise InputError(
            f"{folder} holds no adapter: none of {native.CONFIG}, {hf.CONFIG} and "
            f"{diffusers.TENSORS} is there"
        )
    return set_trainable(adapter, trainable)


def set_trainable(adapter: Adapter, trainable: bool) -> Adapter:
    """Whether a loaded adapter's parameters go on training."""
    adapter.trainable = trainable
    for parameter in adapter.parameters():
        parameter.requires_grad_(trainable)
    return adapter


def _load_native(model: nn.Module, folder: Path, name: str | None, force: bool) -> Adapter:
    config, tensors = native.read(folder)
    name = name or config["name"]
    record_ = admit(model, name)
    named = native.methods(config)
    if len(named) == 1 and isinstance(named[0][1], Selection) and named[0][0] == "":
        adapter = select(model, named[0][1], name)
        _check_keys(adapter.selected, tensors, name)
        _check_base(
            model, native.replaced(unwrap(model), (), adapter.selected), config["base"], name, force
        )
        native.check_digest(config, folder)
        # not in place yet: activating exchanges them, after what is active now has been taken out
        adapter.originals, adapter.in_place = {key: tensors[key] for key in adapter.selected}, False
        return install(model, record_, adapter)
    pairs = native.locate(named, _known(model), name)
    tensors = _elsewhere(named, pairs, tensors, name)
    check = functools.partial(native.check_digest, config, folder)
    return place_read(model, name, pairs, tensors, base=config["base"], force=force, check=check)


def _elsewhere(
    named: list[tuple[str, Method]], pairs: native.Pairs, tensors: dict[str, Tensor], adapter: str
) -> dict[str, Tensor]:
    """The tensors by the names of the methods that act here, which a warning tells where they are
    not those of the file."""
    changed = {
        f"{name}.{saved.name}.": (f"{name}.{method.name}.", saved, method)
        for (name, saved), (_, method) in zip(named, pairs, strict=True)
        if method.name != saved.name
    }
    if not changed:
        return tensors
    _, saved, method = next(iter(changed.values()))
    warnings.warn(
        f"adapter {adapter!r} is {saved.name}, trained over a base in {saved.base}, and at "
        f"{len(changed)} sites the base is not: there it acts as {method.name}, and outputs differ "
        f"by what quantisation rounds. For the base that it was trained on, "
        f"trimtab.quantise(model, {saved.base!r}) before loading",
        stacklevel=4,
    )
    heads = {key: f"{key.rpartition('.')[0]}." for key in tensors}
    return {
        changed[heads[key]][0] + key.rpartition(".")[2] if heads[key] in changed else key: tensor
        for key, tensor in tensors.items()
    }


def _load_hf(model: nn.Module, folder: Path, name: str | None, force: bool) -> Adapter:
    config, tensors = hf.read(folder)
    remembered = hf.remembered(folder)
    name = name or (remembered["name"] if remembered else "default")
    admit(model, name)
    pairs, renamed = hf.interpret(config, tensors, model, _known(model), name)
    base = remembered and remembered["base"]
    return place_read(model, name, pairs, renamed, base=base, force=force)


def _load_diffusers(model: nn.Module, folder: Path, name: str | None, force: bool) -> Adapter:
    remembered = diffusers.remembered(folder)
    name = name or (remembered["name"] if remembered else "default")
    admit(model, name)
    pairs, tensors = diffusers.interpret(folder, unwrap(model), _known(model), name)
    base = remembered and remembered["base"]
    return place_read(model, name, pairs, tensors, base=base, force=force)


def place_read(
    model: nn.Module,
    name: str,
    pairs: native.Pairs,
    tensors: Mapping[str, Tensor],
    *,
    base: Mapping[str, Any] | None = None,
    force: bool = False,
    check: Callable[[], None] | None = None,
) -> Adapter:
    """An adapter from what was read of a file, all of it checked before the model is touched;
    `check` is asked last."""
    record_ = admit(model, name)
    built = _build(model, pairs, tensors, name)
    if base is not None:
        own = native.replaced(unwrap(model), ((site.name, delta) for site, delta in built[0]))
        _check_base(model, own, base, name, force)
    if check is not None:
        check()
    return install(model, record_, place(model, record_, name, built))


def _known(model: nn.Module) -> dict[str, Site]:
    return {path: site for site in sites(model) for path in site.paths}


def _build(
    model: nn.Module, pairs: native.Pairs, tensors: Mapping[str, Tensor], adapter: str
) -> Built:
    """Deltas with the file's tensors, after every key and shape has been checked; the caller's
    random numbers are not drawn upon.
    """
    with torch.random.fork_rng():
        require_parts(model, pairs)
        _check_keys(_shapes(model, pairs, adapter), tensors, adapter)
        built = build(model, pairs)
    with torch.no_grad():
        for key, tensor in native.held(built).items():
            tensor.copy_(tensors[key])
    for site, delta in built[0]:
        if (wrong := delta.method.misfit(delta.live())) is not None:
            raise AdapterMismatch(
                f"adapter {adapter!r}, {delta.method.name} at {site.name!r}: {wrong}"
            )
    return built


def _shapes(model: nn.Module, pairs: native.Pairs, adapter: str) -> dict[str, Tensor]:
    """What the methods will hold, without its memory: a file can ask for any rank."""
    try:
        with torch.device("meta"):
            return native.held(build(model, pairs, torch.device("meta")))
    except InputError as error:
        raise AdapterMismatch(
            f"adapter {adapter!r} cannot be built on this model: {error}"
        ) from None
    except (RuntimeError, TypeError, OverflowError, ValueError):
        raise AdapterMismatch(
            f"adapter {adapter!r}: {pairs[0][1]} cannot be built on this model"
        ) from None


def _check_keys(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], adapter: str) -> None:
    for key in wanted:
        if key not in found:
            raise AdapterMismatch(f"adapter {adapter!r} misses the tensor {key!r}")
        if wanted[key].shape != found[key].shape:
            raise AdapterMismatch(
                f"adapter {adapter!r}: {key!r} has shape {tuple(found[key].shape)}, and must have "
                f"{tuple(wanted[key].shape)} here"
            )
        if found[key].dtype not in (
            _FLOATS if wanted[key].is_floating_point() else {wanted[key].dtype}
        ):
            raise AdapterMismatch(f"adapter {adapter!r}: {key!r} has dtype {found[key].dtype}")
        if not found[key].to(wanted[key].dtype).isfinite().all():
            raise AdapterMismatch(f"adapter {adapter!r}: {key!r} holds values that are not finite")
    for key in found:
        if key not in wanted:
            raise AdapterMismatch(
                f"adapter {adapter!r} has a tensor {key!r} that belongs to no site"
            )


def _check_base(
    model: nn.Module, replaced: set[str], base: Mapping[str, Any], adapter: str, force: bool
) -> None:
    if not force:
        originals = record(model).originals() if carries(model) else {}
        here = fingerprint.describe(unwrap(model), replaced, originals)
        fingerprint.compare(base["parameters"], here, adapter)
