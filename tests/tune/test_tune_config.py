"""A run's configuration: flags and YAML say the same, and what is wrong is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.cli import app, tune
from trimtab.core.errors import InputError
from trimtab.tune.config import Config, parse, read

FIELDS: dict[str, Any] = {
    "model": "minilm",
    "data": "reviews.csv",
    "out": "runs/x",
    "method": "lora",
    "target": ["query", "value"],
    "rank": 4,
    "alpha": 8.0,
    "lr": 3e-4,
    "epochs": 2.5,
    "batch_size": 16,
    "schedule": "cosine",
    "train": ["classifier"],
    "report_to": ["tensorboard"],
    "ranks": {"query": 16},
    "method_arg": {"rslora": True, "dropout": 0.1},
    "skip_bad_rows": True,
    "base_dropout": False,
    "seed": 7,
}
FLAGS = """
--model minilm --data reviews.csv --out runs/x --method lora --target query,value --rank 4 --alpha 8
--lr 3e-4 --epochs 2.5 --batch-size 16 --schedule cosine --train classifier --skip-bad-rows --seed 7
--report-to tensorboard --ranks query=16 --method-arg rslora=true --method-arg dropout=0.1
--no-base-dropout"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """asked(*arguments) -> the configuration that the command line would run."""
    runs: list[Config] = []
    monkeypatch.setattr(tune, "_run", lambda config, **_: runs.append(config))

    def call(*arguments: str) -> Config:
        monkeypatch.setattr(sys, "argv", ["trimtab", "tune", *arguments])
        assert app.run(lambda: app.app(standalone_mode=False)) == 0
        return runs[-1]

    return call


@pytest.mark.parametrize("written", [str, lambda key: key.replace("_", "-")], ids=["_", "-"])
def test_yaml_says_what_flags_say(
    written: Callable[[str], str], asked: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({written(key): value for key, value in FIELDS.items()}))
    assert asked(str(path)) == asked(*FLAGS.split()) == Config(**FIELDS)


def test_a_flag_goes_before_the_file(asked: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(FIELDS))
    config = asked(str(path), "--lr", "0.5", "--out", "other", "--base-dropout")
    assert config == Config(**{**FIELDS, "lr": 0.5, "out": "other", "base_dropout": True})


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    config = Config(**FIELDS, labels=["1", "no", "é", "null"], measured={"dtype_ms": {"a": 1.5}})
    path = tmp_path / "config.yaml"
    path.write_text(config.dump())
    assert parse(read(path), "here") == config


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"learning_rat": 1}, "there is no field 'learning_rat'; "),
    "a field nearly": ({"batchsize": 1}, "no field 'batchsize'; did you mean 'batch_size'"),
    "an unknown method": ({"method": "lroa"}, "no method is called 'lroa'; nearest: .*'lora'"),
    "a rank of none": ({"rank": 0}, "--rank .*greater than or equal to 1, not 0"),
    "a rank in words": ({"rank": "many"}, "--rank .*integer.*'many'"),
    "a negative rate": ({"lr": -1}, "--lr .*greater than 0, not -1"),
    "an infinite rate": ({"lr": float("inf")}, "--lr .*finite"),
    "a rate of no number": ({"lr": float("nan")}, "--lr"),
    "an unknown dtype": ({"dtype": "float8"}, "--dtype .*'auto', 'bfloat16' or 'float32'"),
    "an unknown schedule": ({"schedule": "cosinus"}, "--schedule .*'cosine'"),
    "a list for a word": ({"model": ["a"]}, "--model"),
}


@pytest.mark.parametrize(("fields", "match"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_named(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        parse({**FIELDS, **fields}, "here")


@pytest.mark.parametrize("missing", ["model", "data", "out"])
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(InputError, match=f"here: --{missing} is missing: a run needs --model"):
        parse({key: value for key, value in FIELDS.items() if key != missing}, "here")


@pytest.mark.parametrize("arguments", [{"rank": 4}, {"alpha": 2.0}, {"method_arg": {"rnak": 1}}])
def test_a_hyper_parameter_of_another_method(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"ia3 has no hyper-parameter '(rank|alpha|rnak)'"):
        parse({**FIELDS, "method": "ia3", **_none(), **arguments}, "here").build_method()


def _none() -> dict[str, Any]:
    return {"rank": None, "alpha": None, "ranks": {}, "method_arg": {}}


BAD_YAML = ["- a\n- b\n", "3", "", "a: [", "a: b: c", "!!python/object:os.system x", "\t- x"]


@pytest.mark.parametrize("text", BAD_YAML)
def test_a_file_that_is_no_configuration(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"run\.yaml (cannot be read as YAML|must hold fields)"):
        read(path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


@settings(max_examples=200, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(sorted(Config.model_fields)), plain, max_size=3))
def test_any_value_is_taken_or_refused_by_name(fields: dict[str, Any]) -> None:
    try:
        parse({**FIELDS, **fields}, "here").build_method()
    except InputError:
        return
    assert fields.keys() <= Config.model_fields.keys()
