"""The measure of the architecture: short files, and a method that is one file and one line."""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trimtab

ROOT = Path(trimtab.__file__).parent
PROJECT = Path(__file__).parent.parent
METHODS = sorted((ROOT / "methods").glob("[!_]*.py"))
PARTS_OF_THE_CORE = {"whole"}  # modules trained whole: a verb's argument, and no method of a paper
OF_A_FORMAT = {"lora": {"loralib.py"}, "bitfit": {"hf", "loralib.py"}}  # loralib's files; `bias=`


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_can_be_seen_whole(path: Path) -> None:
    lines = len(path.read_text(encoding="utf8").splitlines())
    assert lines <= (120 if path.parent.name == "methods" else 400)


def test_the_middle_method_is_short() -> None:
    assert statistics.median(len(path.read_text("utf8").splitlines()) for path in METHODS) < 90


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("method", METHODS, ids=lambda p: p.stem)
def test_a_method_is_one_file_and_one_line(method: Path) -> None:
    """Nothing else in the package knows of it, but a kernel of its own name."""
    module = f"trimtab.methods.{method.stem}"
    if method.stem in PARTS_OF_THE_CORE:
        return
    knowing = {path for path in ROOT.rglob("*.py") if module in set(imports(path))}
    store = {ROOT / "store" / name for name in OF_A_FORMAT.get(method.stem, ())}
    knowing -= {path for path in knowing if store & {path, path.parent}}
    assert knowing <= {ROOT / "kernels" / method.name}
    table = (ROOT / "__init__.pyi").read_text(encoding="utf8")
    assert table.count(f"from .methods.{method.stem} import ") >= 1


def test_a_method_of_another_package(tmp_path: Path) -> None:
    """The example package, installed as a user would, is found by its entry point: on the command
    line, in files, in the conformance suite."""
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = PROJECT / "examples" / "trimtab-rank-one"
    copy = tmp_path / "source"
    subprocess.run(["cp", "-r", source, copy], check=True)
    pip = [sys.executable, "-m", "pip", *install, "--target", tmp_path / "site", copy]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    where = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.getenv("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": where}

    def run(*command: str) -> str:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=240
        )
        return answer.stdout

    rows = json.loads(run(sys.executable, "-m", "trimtab", "methods", "rank-one", "--json"))
    assert rows["rank-one"]["mergeable"]
    assert rows["rank-one"]["parameters"] == 2 * 768
    print(run(sys.executable, "-c", SAVED.format(folder=tmp_path / "adapter")))
    print(run(sys.executable, "-c", CHECKED))


SAVED = """
import torch, trimtab
from trimtab.core.registry import build
torch.manual_seed(0)
make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 3))
model = make()
state = model.state_dict()
adapter = trimtab.attach(model, build("rank-one", {{}}), "0")
adapter.parameters()[0].data.fill_(1.0)
trimtab.save(model, r"{folder}")
other = make()
other.load_state_dict({{k: v for k, v in state.items() if "deltas" not in k}})
trimtab.load(other, r"{folder}")
x = torch.randn(2, 4)
assert torch.equal(model(x), other(x))
"""

CHECKED = """
import trimtab.testing
from trimtab.core.registry import lookup
report = trimtab.testing.check_method(lookup("rank-one")())
report.raise_if_broken()
print(report)
"""
