"""What every verb prints when all is well: help, tables, JSON."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
import transformers

import trimtab
from trimtab.cli.app import app
from trimtab.cli.methods import _table
from trimtab.recipes import RECIPES

Cli = Callable[..., Any]
VERBS = sorted(str(command.name) for command in app.registered_commands)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, cli: Cli) -> None:
    outcome = cli(verb, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Example: trimtab {verb}" in outcome.out or f"| trimtab {verb}" in outcome.out
    assert cli(verb, "-h").out == outcome.out


def test_the_program_s_help_names_every_verb(real: Cli) -> None:
    outcome = real("--help")
    assert outcome.code == 0
    assert all(f"  {verb} " in outcome.out for verb in VERBS)
    alone = real()
    assert (alone.code, alone.err) == (2, "")
    assert "Usage" in alone.out


def test_tune_prints_its_metrics_alone(tuned: tuple[Path, Any], metrics: dict[str, Any]) -> None:
    _, outcome = tuned
    assert json.loads(outcome.out) == metrics
    assert outcome.out.count("\n") == 1


def test_tune_prints_a_table(flags: list[str], tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "run"
    outcome = cli(*flags, "--out", str(out))
    assert outcome.code == 0
    for row in ("accuracy", "base, as loaded", "head only", "lora", "report:"):
        assert row in outcome.out
    phases = ["reading", "opening minilm", "counting tokens", "encoding the texts"]
    phases += ["running the base over train", "training the head alone", "step 2/2"]
    phases += ["evaluating adapted on test", "writing the report"]
    assert sorted(phases, key=outcome.err.index) == phases


def test_eval_as_text_and_json(run: str, metrics: dict[str, Any], cli: Cli) -> None:
    outcome = cli("eval", run, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["value"] == metrics["test"]
    assert (
        json.loads(cli("eval", run, "--split", "validation", "--json").out)["value"]
        == (metrics["validation"])
    )
    told = cli("eval", run)
    assert f"adapted: accuracy {metrics['test']['value']:.4f} [" in told.out
    assert f"base: accuracy {metrics['baselines']['base']['value']:.4f} [" in told.out
    assert "gain over base, paired" in told.out
    assert "opening minilm" in told.err
    assert "evaluating base" in told.err


def test_eval_on_new_data(run: str, reviews: Path, tmp_path: Path, cli: Cli) -> None:
    new = tmp_path / "new.jsonl"
    new.write_text('{"review": "A lovely film", "sentiment": "good"}\n')
    result = json.loads(cli("eval", run, "--data", str(new), "--json").out)
    assert (result["data"], result["split"], result["value"]["n"]) == (str(new), None, 1)
    result = json.loads(cli("eval", run, "--data", "-", "--json", stdin=reviews.read_text()).out)
    assert result["value"]["n"] == 60


def test_new_data_need_not_have_the_runs_names(run: str, tmp_path: Path, cli: Cli) -> None:
    """Where a run's columns were named, lines of text remain lines of text."""
    other = Path(shutil.copytree(run, tmp_path / "run"))
    config = (other / "config.yaml").read_text(encoding="utf8")
    named = re.sub(r"(?m)^(text|label)_column: .*$", r"\1_column: \1 as said", config)
    assert named != config
    (other / "config.yaml").write_text(named, encoding="utf8")
    for lines in ("a fine film\n", "a fine film\ndull and lifeless\n"):
        found = cli("predict", str(other), stdin=lines)
        assert (found.code, found.err) == (0, "")
        assert [json.loads(one)["text"] for one in found.out.splitlines()] == lines.splitlines()
    table = "text as said,label as said\nA lovely film,good\n"
    assert json.loads(cli("predict", str(other), stdin=table).out)["text"] == "A lovely film"
    usual = cli("eval", str(other), "--data", "-", "--json", stdin=table.replace(" as said", ""))
    assert json.loads(usual.out)["value"]["n"] == 1


def test_columns_of_new_data_are_named(run: str, tmp_path: Path, cli: Cli) -> None:
    new = tmp_path / "new.csv"
    new.write_text("ding,dong\nA lovely film,good\n", encoding="utf8")
    assert "--column text=NAME" in cli("predict", run, "--data", str(new)).err
    named = ("--data", str(new), "--text-column", "ding")
    assert json.loads(cli("predict", run, *named).out)["text"] == "A lovely film"
    result = cli("eval", run, *named, "--label-column", "dong", "--json")
    assert json.loads(result.out)["value"]["n"] == 1
    assert "name them with --data" in cli("eval", run, "--text-column", "ding").err


def test_predict_from_a_file_and_from_standard_input(
    run: str, tmp_path: Path, cli: Cli, real: Cli
) -> None:
    texts = ["A lovely film", "It is dull", "Ça — 漢字 🎬"]
    path = tmp_path / "new.csv"
    path.write_text("\n".join(["text", *texts]) + "\n", encoding="utf8")
    outcome = cli("predict", run, "--data", str(path))
    assert (outcome.code, outcome.err) == (0, "")
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert {row["label"] for row in rows} <= {"good", "bad"}
    assert all(0.5 <= row["probability"] <= 1 for row in rows)
    piped = real("predict", run, stdin="\n".join(texts) + "\n")
    assert (piped.code, piped.err) == (0, "")
    assert [json.loads(line)["text"] for line in piped.out.splitlines()] == texts
    assert json.loads(cli("predict", run, "--data", str(path), "--json").out) == rows


def test_inspect_a_run_and_its_adapter(run: str, metrics: dict[str, Any], cli: Cli) -> None:
    outcome = cli("inspect", run, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    shown = json.loads(outcome.out)
    assert shown["base"]["fingerprint"] == metrics["base_fingerprint"]
    assert shown["base"]["name"] == "minilm"
    assert {one["method"]: one["sites"] for one in shown["methods"]} == {"lora": 6, "whole": 1}
    assert sum(site["parameters"] for site in shown["sites"]) == metrics["trainable"]
    assert json.loads(cli("inspect", f"{run}/adapter", "--json").out) == shown
    text = cli("inspect", run).out
    assert f"parameters   {metrics['trainable']:,}" in text
    assert metrics["base_fingerprint"] in text
    assert "rank=8" in text
    assert "attention.self.query" in text


def test_many_sites_are_shown_by_block(tmp_path: Path, cli: Cli) -> None:
    model = cases.by_name("bert").model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2)))
    trimtab.save(model, tmp_path)
    sites = json.loads(cli("inspect", str(tmp_path), "--json").out)["sites"]
    folded, whole = (cli("inspect", str(tmp_path), *more).out for more in ([], ["--sites"]))
    (line,) = (one for one in folded.splitlines() if ".*.attention.self.query" in one)
    norms = [site["norm"] for site in sites if "self.query" in site["name"]]
    assert f"{min(norms):.3f} … {max(norms):.3f}" in line
    assert len(re.findall("[▁▂▃▄▅▆▇█]", line)) == len(norms) == 2
    assert all(site["name"] in whole for site in sites)
    assert len(folded) < len(whole)


def test_blocks_stand_one_beneath_the_other(tmp_path: Path, cli: Cli) -> None:
    """Whichever of them are adapted, and whatever has diverged."""
    sizes = {**cases.BERT, "num_hidden_layers": 12}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    plan = {"*.layer.[3-9].*.query": trimtab.LoRA(), "*.layer.[0-7].*.value": trimtab.LoRA()}
    adapter = trimtab.attach(model, plan)
    cases.perturb(adapter)
    with torch.no_grad():
        adapter.members[1].get_parameter("A").fill_(torch.nan)
    trimtab.save(model, tmp_path)
    for more in ([], ["--sites"]):
        outcome = cli("inspect", str(tmp_path), *more)
        assert (outcome.code, outcome.err) == (0, "")
        assert "nan" in outcome.out
    lines = cli("inspect", str(tmp_path)).out.splitlines()
    (query,) = (one for one in lines if ".*.attention.self.query" in one)
    (value,) = (one for one in lines if ".*.attention.self.value" in one)
    columns = {line: re.search("[!▁▂▃▄▅▆▇█]+", line) for line in (query, value)}
    assert all(columns.values())
    assert columns[query].start() == columns[value].start() + 3
    assert [len(found[0]) for found in columns.values()] == [7, 8]


def test_blocks_themselves_are_folded(tmp_path: Path, cli: Cli) -> None:
    sizes = {**cases.BERT, "num_hidden_layers": 14}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    cases.perturb(trimtab.attach(model, trimtab.ReFT()))
    trimtab.save(model, tmp_path)
    assert re.search(r"bert\.encoder\.layer\.\*\s+14 ", cli("inspect", str(tmp_path)).out)


def test_inspect_a_folder_of_hf_peft(tmp_path: Path, cli: Cli) -> None:
    model = cases.by_name("bert").model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2), "query"))
    trimtab.save(model, tmp_path, format="peft")
    shown = json.loads(cli("inspect", str(tmp_path), "--json").out)
    assert shown["format"] == "peft"
    assert sum(site["parameters"] for site in shown["sites"]) == 2 * (2 * 32 + 32 * 2)
    text = cli("inspect", str(tmp_path)).out
    assert "(peft format" in text
    assert "LORA" in text


def test_methods_lists_every_method(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = cli("methods", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    rows = json.loads(outcome.out)
    assert list(rows) == [*trimtab.methods(), *sorted(RECIPES)]
    assert {name for name, row in rows.items() if row["kind"] == "recipe"} == set(RECIPES)
    assert rows["lora"]["hf_peft"] == "LORA"
    assert rows["lora"]["parameters"] == 2 * 8 * 768
    capsys.readouterr()
    _table(rows)
    shown = capsys.readouterr().out
    assert all(name in shown for name in rows)
    assert all(f"{row['parameters']:,}" in shown for row in rows.values() if row.get("parameters"))


def test_a_reader_that_leaves_ends_in_silence() -> None:
    """`trimtab methods ia3 --json | head -0`."""
    command = [sys.executable, "-m", "trimtab", "methods", "ia3", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() in {0, 1}
