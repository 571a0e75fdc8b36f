"""Molecules: what RDKit says of a bad one, what was not measured, two towers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from examples.molecules import encoder, molecules, pairs, write

import trimtab
from trimtab.core.errors import InputError
from trimtab.data.molecules import canonical
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tune.run import tune
from trimtab.tune.session import read_data

NAN = float("nan")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("models") / "smiles-bert")


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("C1CC", "invalid SMILES 'C1CC': unclosed ring"),
        ("CC(", "invalid SMILES 'CC[(]': syntax error around character 3"),
        ("C(C)(C)(C)(C)C", "Explicit valence for atom # 0 C, 5, is greater than permitted"),
        ("ethanol", "invalid SMILES 'ethanol'"),
        ("CCO water", "the smiles 'CCO water' has a blank"),
        ("", "empty smiles"),
    ],
)
def test_a_molecule_that_is_none(
    quick: Callable[..., Any], bert: Path, tmp_path: Path, smiles: str, message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [*molecules()[:4], {"smiles": smiles, "label": 1.0}]
    data = write(tmp_path / "data" / "new.csv", rows)
    with pytest.raises(InputError, match=rf"new\.csv, line 6: .*{message}"):
        read_data(quick(task="molecule-property", model=bert, data=data))
    assert capfd.readouterr().err == ""  # RDKit writes nothing by itself


def test_two_notations_are_one_molecule(
    quick: Callable[..., Any], bert: Path, given: Callable[..., Path]
) -> None:
    """That of ethanol in the test was trained on."""
    data = given(
        train=molecules(), test=[{"smiles": " OCC ", "label": 1}], validation=molecules()[-2:]
    )
    splits = read_data(quick(task="molecule-property", model=bert, data=data))
    assert splits.test["smiles"] == ["OCC"]
    assert canonical("OCC") == canonical("CCO") == "CCO"
    assert any("test" in note and "train" in note for note in splits.notes)
    task = lookup("molecule-property", {"canonical": True})
    ids = task.encode(splits.test, task.processor(str(bert)), None, 99).examples[0]["input_ids"]
    assert task.processor(str(bert)).decode(ids, skip_special_tokens=True) == "C C O"


def test_what_was_not_measured_counts_nowhere() -> None:
    task = lookup("molecule-property", {"kind": "activity", "assays": "AR, p53"})
    z = torch.tensor([[2.0, -1.0], [0.5, 9.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, NAN]])
    expected = (F.softplus(-z[0, 0]) + F.softplus(z[0, 1])) / 2 + F.softplus(z[1, 0])
    torch.testing.assert_close(task.loss_of(z, labels), expected / 2)
    z.requires_grad_()
    task.loss_of(z, labels).backward()
    assert z.grad[1, 1] == 0
    rows = Dataset.from_dict({"smiles": ["C", "CC"], "AR": [1.0, 0.0], "p53": [0.0, None]})
    np.testing.assert_equal(task.references(rows, []), [[1, 0], [0, NAN]])
    (told, _) = task.told(z.detach().numpy(), rows, [], None)
    assert told["activities"] == {"AR": 0.880797, "p53": 0.268941}


def test_several_assays_with_gaps(quick: Callable[..., Any], bert: Path, tmp_path: Path) -> None:
    """Chains of ten carbons are active; ends are measured in another assay, of half of them."""
    rows = [
        {
            "smiles": row["smiles"],
            "long": int(len(row["smiles"]) > 10),
            "acid": "" if i % 2 else int(row["smiles"].endswith("O")),
        }
        for i, row in enumerate(molecules())
    ]
    data = write(tmp_path / "data" / "assays.csv", rows)
    fields = {"task": "molecule-property", "model": bert, "data": data, "lr": 5e-3}
    options = {"kind": "activity", "assays": "long,acid"}
    config = quick(**fields, task_arg=options, max_steps=30, eval_every=30)
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "macro_roc_auc"
    assert metrics["validation"]["value"] > 0.7
    assert metrics["baselines"]["head"] is not None
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    wrong = {**options, "assays": "long,acidd"}
    with pytest.raises(InputError, match="no column 'acidd'"):
        tune(quick(**fields, task_arg=wrong, out=tmp_path / "other"), quiet=True)
    for odd, message in (
        ({"long": "", "acid": ""}, "none of its assays was measured"),
        ({"long": 0.5, "acid": 1}, "the long is 0.5, and an activity is 0 or 1"),
    ):
        write(data, [*rows, {"smiles": "CCO", **odd}])
        with pytest.raises(InputError, match=rf"line {len(rows) + 2}: {message}"):
            read_data(quick(**fields, task_arg=options))


def test_a_property_by_the_command_line(bert: Path, tmp_path: Path) -> None:
    """A run, and a prediction of standard input, a molecule a line."""
    data = write(tmp_path / "data" / "solubility.csv", molecules())
    exact = ("--attention", "eager", "--products", "exact", "--replicas", "1", "--lr", "5e-3")
    flags = {"task": "molecule-property", "model": bert, "data": data, "out": tmp_path / "run"}
    parts = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "trimtab", "tune", *parts, *exact, "--dtype", "float32"]
    steps = ["--max-steps", "30", "--eval-every", "30", "--batch-size", "16", "--json"]
    done = subprocess.run([*command, *steps], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["metric"] == "rmse"
    assert found["test"]["value"] < 0.8 * found["baselines"]["base"]["value"]
    told = predict(str(tmp_path / "run"), str(data))
    assert told[0]["smiles"] == molecules()[0]["smiles"]
    bad = tmp_path / "new.csv"
    bad.write_text("smiles\nCCO\nC1CC\n")
    with pytest.raises(InputError, match=r"new\.csv, line 3: invalid SMILES 'C1CC'"):
        predict(str(tmp_path / "run"), str(bad))


@pytest.fixture
def paired(quick: Callable[..., Any], bert: Path, tmp_path: Path) -> Callable[..., Any]:
    def paired(**changes: Any) -> Any:
        data = write(tmp_path / "data" / "pairs.csv", pairs())
        fields: Mapping[str, Any] = {"task": "molecule-pair", "model": bert, "data": data}
        return quick(**{**fields, "lr": 5e-3, **changes})

    return paired


def test_shared_towers_do_not_know_an_order(paired: Callable[..., Any]) -> None:
    config = paired(max_steps=40, eval_every=40, batch_size=16)
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "roc_auc"
    assert metrics["baselines"]["head"] is not None
    assert metrics["validation"]["value"] > 0.8
    one = predict(config.out, str(Path(config.data)))[0]
    turned = Path(config.data).with_name("turned.csv")
    turned.write_text(f"smiles,other\n{one['other']},{one['smiles']}\n")
    assert predict(config.out, str(turned))[0]["activity"] == pytest.approx(
        one["activity"], abs=1e-5
    )


def test_own_towers_have_adapters_of_their_own(bert: Path) -> None:
    for towers, sides in (("shared", {"encoder"}), ("own", {"encoder", "second"})):
        task = lookup("molecule-pair", {"towers": towers})
        model, fresh = task.model(
            str(bert), [], task.processor(str(bert)), torch.float32, dropout=False
        )
        assert fresh == ["head.weight", "head.bias"]
        adapter = trimtab.attach(model, trimtab.LoRA(rank=2), train=["head"])
        assert {name.split(".")[0] for name in adapter.tensors()} == {*sides, "head"}


def test_own_towers_run(paired: Callable[..., Any]) -> None:
    config = paired(task_arg={"towers": "own", "kind": "number"})
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "rmse"
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]


def test_options_of_molecules_that_do_not_go_together() -> None:
    with pytest.raises(InputError, match="assays belong to kind=activity"):
        lookup("molecule-property", {"assays": "a,b"})
    with pytest.raises(InputError, match="kind is number or activity, not 'both'"):
        lookup("molecule-property", {"kind": "both"})
    with pytest.raises(InputError, match="towers is shared or own, not 'two'"):
        lookup("molecule-pair", {"towers": "two"})
