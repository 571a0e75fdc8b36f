"""The layers of the package import one way, and `import trimtab` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import trimtab

ROOT = Path(trimtab.__file__).parent
LAYERS = [
    {"core"},
    {"methods", "match", "codes", "attention", "choose", "place", "together", "adapt", "reference"},
    {"store", "kernels", "quant", "init", "plan"},
    {"tasks", "data", "tune", "evaluate", "compare", "export", "serve", "combine", "recipes"},
    {"testing"},
    {"capabilities"},
    {"overhead"},
    {"cli", "__main__"},
]
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
CORE = {"torch", "jaxtyping", "trimtab"}


def package(module: str) -> str:
    """`trimtab.core.host` -> `core`; the package itself, `trimtab`, -> ``."""
    return [*module.split("."), ""][1]


def imported(source: str) -> Iterator[str]:
    """Every module that a file names in an import, wherever in the file; types included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            if node.module == "trimtab":
                yield from map(origin, (alias.name for alias in node.names))
            else:
                yield node.module


def origin(exported: str) -> str:
    """The module that something in `trimtab`'s table of contents comes from."""
    found = getattr(getattr(trimtab, exported, None), "__module__", None)
    return found or f"trimtab.{exported}"


def offences(own: str, modules: Iterator[str]) -> list[str]:
    """What a file of the package `own` (`trimtab.methods.lora`) may not import."""
    here, found = package(own), []
    for module in modules:
        top, there = module.partition(".")[0], package(module)
        if top == "trimtab":
            upward = RANK.get(there, len(RANK)) > RANK[here]
            sibling = here == there == "methods" and module != own and "._peft_" not in module
            if upward or sibling:
                found.append(module)
        elif here == "core" and top not in CORE | sys.stdlib_module_names:
            found.append(module)
    return found


def name(path: Path) -> str:
    return ".".join(("trimtab", *path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=[name(path) for path in FILES])
def test_imports_run_one_way(path: Path) -> None:
    assert package(name(path)) in RANK, "a new package needs its place in LAYERS"
    assert offences(name(path), imported(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("own", "line", "found"),
    [
        ("trimtab.core.host", "import numpy", ["numpy"]),
        ("trimtab.core.host", "from trimtab.match import sites", ["trimtab.match"]),
        ("trimtab.core.host", "from trimtab import match", ["trimtab.match"]),
        ("trimtab.core.host", "from trimtab import attach", ["trimtab.adapt"]),
        ("trimtab.tune.run", "from trimtab import attach, LoRA", []),
        ("trimtab.core.host", "import torch.nn, contextlib", []),
        ("trimtab.methods.lora", "from trimtab.methods.ia3 import IA3", ["trimtab.methods.ia3"]),
        ("trimtab.methods.lora", "def f():\n import trimtab.tune", ["trimtab.tune"]),
        ("trimtab.adapt", "from trimtab.methods.whole import Whole", []),
        ("trimtab.store.hf", "from trimtab.cli import main", ["trimtab.cli"]),
        ("trimtab.cli.main", "from trimtab.tune import run\nimport typer", []),
    ],
)
def test_the_rule_itself(own: str, line: str, found: list[str]) -> None:
    assert offences(own, imported(line)) == found


def loaded(code: str) -> set[str]:
    """What is imported once this has run in a fresh interpreter."""
    told = f"{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys\n{told}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(answer.stdout.split("\n")[-2].split())


HEAVY = {"transformers", "datasets", "accelerate", "sklearn", "pandas", "plotly", "typer"}
HEAVY |= {"bitsandbytes", "torchao", "rich", "jinja2", "pydantic"}


def test_importing_trimtab_loads_nothing() -> None:
    assert loaded("import trimtab") & (HEAVY | {"torch", "numpy"}) == set()


def test_adapting_a_model_loads_nothing_heavy() -> None:
    model = "torch.nn.Sequential(torch.nn.Linear(2, 2))"
    found = loaded(f"import trimtab, torch\ntrimtab.attach({model}, trimtab.LoRA(rank=1), '0')")
    assert "torch" in found
    assert found & HEAVY == set()


def test_asking_for_help_does_not_wait_for_torch() -> None:
    """Nor does a mistake in what was typed."""
    begin = (
        "sys.argv[1:] = {}\nimport trimtab.cli\ntry:\n trimtab.cli.main()\nexcept SystemExit: pass"
    )
    for typed in (["--help"], ["tune", "--help"], ["tuen"]):
        assert "torch" not in loaded(begin.format(typed))


def run(code: str) -> None:
    """In an interpreter that has imported nothing yet."""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("first", ["trimtab.match", "trimtab.methods.lora", "trimtab.tune.run"])
def test_functions_stand_before_modules_of_their_name(first: str) -> None:
    run(f"import {first}, trimtab\nassert 'lora' in trimtab.methods() and callable(trimtab.match)")


def test_maps_in_codes_are_known_whoever_asks_first() -> None:
    run(
        "import torch\nfrom trimtab.core import quantised\n"
        "assert quantised.library(torch.nn.Linear(2, 2)) is None\n"
        "assert set(quantised._libraries) == {'bitsandbytes', 'torchao'}"
    )


def test_a_name_of_ours_is_taken_though_nothing_is_loaded_yet() -> None:
    run(
        "from trimtab.core.method import Additive\n"
        "try:\n class Mine(Additive):\n  name = 'lora'\n"
        "except ValueError as error:\n assert 'taken by LoRA' in str(error)\n"
        "else:\n raise SystemExit('not refused')"
    )


def test_a_kernel_of_ones_own_is_asked_before_ours() -> None:
    run(
        "from trimtab.core import kernel\nfrom trimtab.methods.lora import LoRA\n"
        "mine = kernel.Kernel('mine', lambda *a: True, lambda *a: None)\n"
        "kernel.register(LoRA, mine)\nimport trimtab\ntrimtab.methods()\n"
        "assert kernel._kernels[LoRA][0] is mine and len(kernel._kernels[LoRA]) == 4"
    )


def test_two_threads_that_ask_at_once() -> None:
    run(
        "import concurrent.futures, trimtab\n"
        "with concurrent.futures.ThreadPoolExecutor(8) as pool:\n"
        " list(pool.map(lambda name: getattr(trimtab, name), 2 * trimtab.__all__))"
    )


def test_what_is_not_offered_is_told_with_what_is_near() -> None:
    with pytest.raises(AttributeError, match="offers no 'Lora'; nearest: 'LoRA'"):
        _ = trimtab.Lora


@pytest.mark.parametrize("exported", sorted(trimtab.__all__))
def test_what_is_offered_is_there(exported: str) -> None:
    assert getattr(trimtab, exported) is not None
    assert not isinstance(getattr(trimtab, exported), types.ModuleType) or exported in {
        "combine",
        "init",
        "kernels",
    }
