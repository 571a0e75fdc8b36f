"""A user's mistake ends in one paragraph that names it and in exit code 2, never in a traceback."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Cli = Callable[..., Any]


def assert_refused(outcome: Any, match: str, code: int = 2) -> None:
    """In one paragraph, after what was said of what was being done."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    said = re.sub(r"(?m)^.* …\n", "", outcome.err)
    assert said.startswith("trimtab: error: ")
    assert re.search(match, said), said
    assert "Traceback" not in said
    assert "\n\n" not in said


FLAGS: dict[str, tuple[str, str]] = {
    "unknown model": ("--model no-such-model", "model 'no-such-model' cannot be loaded.*'minilm'"),
    "model nearly": ("--model minilmm", "model 'minilmm'.*nearest: 'minilm'"),
    "model folder missing": ("--model ./nowhere/x", r"model '\./nowhere/x' does not exist"),
    "unknown method": ("--method lroa", "no method is called 'lroa'; nearest: 'road', 'lora'"),
    "unknown task": ("--task text-clasification", "no task .*nearest: 'text-classification'"),
    "unknown target": ("--target quary", r"no site matches 'quary'; nearest: 'query' \(6 sites\)"),
    "broken target": ("--target re:(", "is no regular expression"),
    "unknown text column": ("--text-column txt", "no column 'txt' .*nearest: 'text'"),
    "unknown label column": ("--label-column lable", "no column 'lable' .*nearest: 'label'"),
    "missing data": ("--data reviws.csv", "'reviws.csv': no file or folder"),
    "data of no format": ("--data {here}/data.xls", r"files in '\.xls' are not read"),
    "too long": ("--max-length 9999", "--max-length 9999 is beyond the 512 positions of 'minilm'"),
    "unknown flag": ("--learning-rate 1", "No such option: --learning-rate|no such option"),
    "words for a number": ("--rank many", "--rank.* valid int"),
    "a rank of none": ("--rank 0", "--rank .*greater than or equal to 1, not 0"),
    "an infinite rate": ("--lr inf", "--lr .*finite"),
    "no such dtype": ("--dtype float7", "--dtype .*'float32', not 'float7'"),
    "no such attention": ("--attention flashy", "--attention flashy: "),
    "no such tracker": ("--report-to wandbb", "--report-to wandbb: no such tracker"),
    "another method's": ("--method ia3 --rank 4", "ia3 has no hyper-parameter 'rank'"),
    "unknown argument": ("--method-arg rnak=4", "no hyper-parameter 'rnak'; nearest: 'rank'"),
    "argument of another type": ("--method-arg rslora=3", "rslora must be bool .*not 3"),
    "argument without value": ("--method-arg rslora", "--method-arg takes name=value"),
    "argument that is broken": ("--method-arg rslora=[", "--method-arg rslora=.* is no value"),
    "module to train": ("--train clasifier", "matches 'clasifier'.*nearest: 'classifier'"),
    "another library's name": ("--method-arg r=4", r"here it is 'rank': LoRA\(rank=4\)"),
    "recipe of Python": ("--recipe t-few", r"t-few is few-shot.*trimtab\.recipes\.t_few\.train"),
    "unknown recipe": ("--recipe distil", "no recipe is called 'distil'; nearest: 'distill'"),
    "teacher": (
        "--recipe distill --teacher runs/techer",
        "--teacher runs/techer is no run .*nearest: 'runs/teacher'",
    ),
    "resume of nothing": ("--resume", "holds no run: there is no config.yaml"),
    "no such file": ("{here}/missing.yaml", "there is no file .*missing.yaml"),
}


@pytest.mark.parametrize(("given", "match"), FLAGS.values(), ids=list(FLAGS))
def test_tune_refuses(
    given: str, match: str, flags: list[str], tmp_path: Path, cli: Cli, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.xls").touch()
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    (tmp_path / "runs" / "teacher" / "config.yaml").touch()
    out = tmp_path / "runs" / "x"
    outcome = cli(*flags, "--out", str(out), *given.format(here=tmp_path).split())
    assert_refused(outcome, match)
    assert not out.exists()


ROW = "A lovely film,good\nA dull film,bad\n"
DATA: dict[str, tuple[str, str]] = {
    "empty": ("", "is empty"),
    "header only": ("text,label\n", "has a header and no rows"),
    "one label only": ("text,label\n" + "A film,good\n" * 30, "has one label only: 'good'"),
    "no label column": ("text,stars\nA film,5\n", "no column for the label.*--column label=NAME"),
    "too few rows": ("text,label\n" + ROW, "too few to hold some out"),
    "a broken row": (f"text,label\n{ROW * 20}A film,good,5\n", "line 42: 3 fields.*has 2"),
    "an empty text": (f"text,label\n{ROW} ,good\n{ROW * 20}", "line 4: empty text"),
}


@pytest.mark.parametrize(("content", "match"), DATA.values(), ids=list(DATA))
def test_data_that_cannot_be_used(
    content: str, match: str, flags: list[str], tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    outcome = cli(*flags, "--data", str(path), "--out", str(tmp_path / "run"))
    assert_refused(outcome, match)
    assert "data.csv" in outcome.err
    assert not (tmp_path / "run").exists()


def test_broken_rows_can_be_skipped(
    flags: list[str], reviews: Path, tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "data.csv"
    path.write_text(reviews.read_text() + "A film,good,5\n,bad\n")
    given = [*flags, "--data", str(path), "--out", str(tmp_path / "run")]
    refused = cli(*given)
    assert_refused(refused, r"2 rows of the data cannot be used")
    assert "line 62" in refused.err
    assert "--skip-bad-rows" in refused.err
    outcome = cli(*given, "--skip-bad-rows", "--json")
    assert outcome.code == 0
    assert any("2 of 62 rows" in note for note in json.loads(outcome.out)["notes"])


YAML: dict[str, tuple[str, str]] = {
    "broken": ("model: [", "cannot be read as YAML"),
    "a list": ("- minilm", "must hold fields such as 'model: minilm'"),
    "unknown field": ("batchsize: 3", "no field 'batchsize'; did you mean 'batch_size'"),
    "wrong type": ("epochs: many", "--epochs .*'many'"),
    "nothing needed": ("seed: 3", "--model is missing: a run needs --model, --data and --out"),
}


@pytest.mark.parametrize(("content", "match"), YAML.values(), ids=list(YAML))
def test_yaml_that_cannot_be_used(content: str, match: str, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    outcome = cli("tune", str(path))
    assert_refused(outcome, match)
    assert "run.yaml" in outcome.err


def test_a_folder_that_holds_a_run(flags: list[str], run: str, cli: Cli) -> None:
    before = (Path(run) / "config.yaml").read_bytes()
    outcome = cli(*flags, "--out", run)
    assert_refused(outcome, r"holds a run already: go on with --resume, or choose another --out")
    assert (Path(run) / "config.yaml").read_bytes() == before


def test_out_is_a_file(flags: list[str], tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "file").write_text("mine")
    assert_refused(cli(*flags, "--out", str(tmp_path / "file")), "file, not a folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_flags_that_contradict_the_run_to_resume(run: str, cli: Cli) -> None:
    resume = ["tune", "--resume", "--out", run]
    assert_refused(cli(*resume, "--lr", "0.5"), r"--lr 0\.5 contradicts .* has 0\.001")
    assert_refused(cli(*resume, "--target", "query,value"), "--target .* contradicts")
    assert_refused(cli("tune", "--resume"), "--resume needs --out")


def test_a_file_that_contradicts_the_run_to_resume(run: str, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"out": run, "seed": 9}))
    assert_refused(cli("tune", str(path), "--resume"), "--seed 9 contradicts .* has 0")


def test_the_same_command_with_resume_goes_on(
    flags: list[str], run: str, metrics: dict[str, Any], tmp_path: Path, cli: Cli
) -> None:
    """What was left to measurement, or named in another form, is no contradiction."""
    copied = str(shutil.copytree(run, tmp_path / "run"))
    more = ["--dtype", "auto", "--train", "classifier", "--attention", "auto"]
    outcome = cli(*flags, *more, "--out", copied, "--resume", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["test"] == metrics["test"]


@pytest.mark.parametrize("verb", ["eval", "predict", "inspect"])
def test_a_folder_that_is_no_run(verb: str, tmp_path: Path, cli: Cli) -> None:
    assert_refused(cli(verb, str(tmp_path)), "holds no (run|adapter)")
    assert_refused(cli(verb, str(tmp_path / "nowhere")), "holds no run|is no folder")
    assert_refused(cli(verb), "Missing argument|missing argument")


def test_data_that_does_not_suit_the_run(run: str, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "new.csv"
    path.write_text("text,label\nA film,superb\n")
    assert_refused(cli("eval", run, "--data", str(path)), r"never saw: \['superb'\].*'good'")
    path.write_text("label\ngood\n")
    assert_refused(cli("predict", run, "--data", str(path)), "no column for the text")
    assert_refused(cli("predict", run, "--data", str(tmp_path / "nwe.csv")), "nearest: 'new.csv'")
    assert_refused(cli("predict", run, "--data", str(tmp_path)), "is a folder")
    assert_refused(cli("predict", run, stdin=""), "standard input is empty")
    assert_refused(cli("eval", run, "--split", "dev"), "--split.*'dev'")


def test_an_adapter_that_was_damaged(run: str, tmp_path: Path, cli: Cli) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    tensors = copied / "adapter" / "adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:999])
    for verb in ("eval", "inspect"):
        assert_refused(cli(verb, str(copied)), "is no whole safetensors file")


def test_errors_as_json(tmp_path: Path, cli: Cli) -> None:
    outcome = cli("inspect", str(tmp_path), "--json")
    assert outcome.code == 2
    error = json.loads(outcome.out)
    assert error["exit_code"] == 2
    assert outcome.err == f"trimtab: error: {error['error']}\n"


def test_divergence_is_a_failed_run(flags: list[str], tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "run"
    wild = ["--target", "all-linear", "--lr", "1e30", "--max-steps", "6"]
    outcome = cli(*flags, *wild, "--out", str(out))
    assert outcome.code == 1
    assert outcome.out == ""
    assert re.search(r"trimtab: error: training diverged: .* step \d.*--lr", outcome.err)
    assert "Traceback" not in outcome.err


REAL = [
    (["tun"], "No such command 'tun'|no such command"),
    (["tune", "--model", "minilm", "--data", "nowhere.csv", "--out", "x"], "nowhere.csv"),
    (["tune", "--rank", "many"], "--rank"),
    (["inspect", "nowhere"], "nowhere is no folder"),
]


@pytest.mark.parametrize(("arguments", "match"), REAL, ids=["verb", "data", "rank", "folder"])
def test_in_a_real_process(
    arguments: list[str], match: str, real: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(real(*arguments), match)
    assert list(tmp_path.iterdir()) == []


def test_predict_in_a_real_process_on_no_run(real: Cli, tmp_path: Path) -> None:
    assert_refused(real("predict", str(tmp_path), stdin="A film\n"), "holds no run")
