"""Law 5: HF PEFT's files both ways, where it has the method, with HF PEFT itself as the judge."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from trimtab.core.errors import InputError
from trimtab.core.method import Method
from trimtab.store.verbs import load, save
from trimtab.testing.architectures import Architecture
from trimtab.testing.trial import (
    NotApplicable,
    NotHere,
    Trial,
    assert_near,
    assert_same,
    ensure,
)


def files_of_hf_peft(method: Method, architecture: Architecture) -> None:
    """What is written here computes the same there, and what is written there the same here."""
    if method.hf is None:
        raise NotApplicable("HF PEFT has no such method")
    if importlib.util.find_spec("peft") is None:
        raise NotApplicable("HF PEFT is not installed")
    trial = Trial(method, architecture)
    trial.perturbed()
    outputs = trial.outputs()
    with tempfile.TemporaryDirectory() as temporary:
        ours, theirs = Path(temporary) / "ours", Path(temporary) / "theirs"
        try:
            save(trial.model, ours, name="default", format="peft")
        except InputError as error:
            raise NotHere(str(error)) from None
        with _their_warnings():
            there = _there(architecture.model(), ours)
            found = _their_outputs(trial, there, like=outputs)
            assert_near(found, outputs, "our file, run by HF PEFT", 2e-5)
            there.save_pretrained(str(theirs))
        _same_files(ours, theirs)
        back = Trial(method, architecture)
        load(back.model, theirs)
        assert_near(back.outputs(), outputs, "HF PEFT's file, run here", 2e-5)
        again = Trial(method, architecture)
        load(again.model, ours)
        assert_same(again.outputs(), back.outputs(), "the two files, run here")


def _there(model: nn.Module, folder: Path) -> Any:
    """As one that trains, where it may: HF PEFT's AdaLoRA computes no loss otherwise."""
    import peft

    trains = not peft.PeftConfig.from_pretrained(str(folder)).is_prompt_learning
    return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trains).eval()


def _their_outputs(trial: Trial, there: Any, like: torch.Tensor) -> torch.Tensor:
    """HF PEFT takes tasks as an argument of the call, and leaves the positions of a prompt in the
    logits of a decoder."""
    batch = dict(trial.batch)
    if "task_ids" in getattr(trial.method, "needs", ()):
        count = next(len(value) for value in batch.values() if isinstance(value, torch.Tensor))
        batch["task_ids"] = torch.zeros(count, dtype=torch.long)
    found = trial.architecture.outputs(there, batch)
    added = getattr(there.active_peft_config, "num_virtual_tokens", None) or 0
    longer = found.ndim == 3 and found.shape[1] == like.shape[1] + added
    return found[:, added:] if longer else found


@contextmanager
def _their_warnings() -> Iterator[None]:
    """What HF PEFT asks of transformers is deprecated there; that is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _same_files(ours: Path, theirs: Path) -> None:
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (ours, theirs))
    ensure(one.keys() == other.keys(), f"keys that differ: {sorted(one.keys() ^ other.keys())[:4]}")
    for key, tensor in one.items():
        ensure(tensor.dtype == other[key].dtype, f"{key}: {tensor.dtype}, not {other[key].dtype}")
        assert_same(tensor, other[key], key)
    mine, full = (json.loads((f / "adapter_config.json").read_text()) for f in (ours, theirs))
    strange = sorted(mine.keys() - full.keys())
    ensure(not strange, f"HF PEFT's configuration has no {strange}")
    ensure(mine["peft_type"] == full["peft_type"], "another type of adapter")
