"""The demo's data: docstrings of Python's standard library, labelled with their package.

Real text that every machine with Python has. Sources are parsed, never imported. What comes out
depends on the Python that runs; nothing here counts on a number of examples.
"""

from __future__ import annotations

import ast
import platform
import random
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from trimtab.core.errors import InputError
from trimtab.data.rows import Rows
from trimtab.data.splits import Splits, as_dataset

LABELS = 12
EXAMPLES = 2_500
SHORTEST, PARAGRAPH, LONGEST = 20, 100, 400  # characters
SHARES = {"train": 0.55, "validation": 0.12, "test": 0.33}

LEFT_OUT = {
    "test",
    "distutils",  # gone from Python 3.12
    "lib2to3",  # gone from Python 3.13
    "encodings",  # a hundred tables that share one sentence
}
TESTS = {"test", "tests", "idle_test"}

Modules = dict[str, list[str]]  # module -> its docstrings


def docstrings(seed: int = 0) -> Splits:
    """About 2,500 docstrings with about 12 labels, on Python 3.11; split by module.

    Columns `text` and `label`. No module is in two splits, and every split has every label.
    Deterministic for a `seed` and a Python. Raises `InputError` where Python has no sources.
    """
    rng = random.Random(seed)
    packages = _largest(_packages(Path(sysconfig.get_path("stdlib"))))
    if len(packages) < 2:
        raise InputError("this Python came without the sources of its standard library")
    cap = _cap([_count(modules) for modules in packages.values()])
    dealt = {name: _deal(_sample(m, cap, rng), rng) for name, m in sorted(packages.items())}
    parts = {split: _rows(dealt, split, rng) for split in SHARES}
    return Splits(
        **{split: as_dataset(rows) for split, rows in parts.items()},
        origin=f"docstrings of Python {platform.python_version()}'s standard library",
        notes=_notes(packages, parts, cap),
    )


def _packages(stdlib: Path) -> dict[str, Modules]:
    """Package -> module -> docstrings, without those that were seen before."""
    seen: set[str] = set()
    found: dict[str, Modules] = {}
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        if name.startswith("_") or not (stdlib / name / "__init__.py").is_file():
            continue
        for path in sorted((stdlib / name).rglob("*.py")):
            module = path.relative_to(stdlib).with_suffix("")
            new = [] if TESTS & set(module.parts) else _new(_texts(path), seen)
            if new:
                found.setdefault(name, {})[".".join(module.parts)] = new
    return found


def _new(texts: Iterator[str], seen: set[str]) -> list[str]:
    new = [text for text in dict.fromkeys(texts) if text not in seen]
    seen.update(new)
    return new


def _texts(path: Path) -> Iterator[str]:
    """The docstrings of a source file's module, classes, functions and methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that a later Python warns of
        try:
            pending: list[ast.AST] = [ast.parse(path.read_bytes())]
        except (SyntaxError, ValueError, OSError):  # a fixture that is broken on purpose
            return
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = _opening(ast.get_docstring(node) or "")
            if len(text) >= SHORTEST:
                yield text
        pending += [
            n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.ExceptHandler)
        ]


def _opening(docstring: str) -> str:
    """The first paragraph, and what follows where that is a mere line; cut at a word."""
    text = ""
    for paragraph in docstring.split("\n\n"):
        text = " ".join([*text.split(), *paragraph.split()])
        if len(text) >= PARAGRAPH:
            break
    return text if len(text) <= LONGEST else text[: LONGEST + 1].rpartition(" ")[0]


def _largest(packages: dict[str, Modules]) -> dict[str, Modules]:
    """The packages with the most examples, of those that can be split by module."""
    divisible = {n: m for n, m in packages.items() if len(m) >= len(SHARES)}
    ranked = sorted(divisible, key=lambda name: (-_count(divisible[name]), name))
    return {name: divisible[name] for name in ranked[:LABELS]}


def _count(modules: Modules) -> int:
    return sum(map(len, modules.values()))


def _cap(sizes: list[int]) -> int:
    """The largest size of a class with which all together stay within `EXAMPLES`."""
    cap = max(sizes)
    while sum(min(size, cap) for size in sizes) > EXAMPLES:
        cap -= 1
    return cap


def _sample(modules: Modules, cap: int, rng: random.Random) -> Modules:
    """At most `cap` examples of a package, and no module without any."""
    spare = [(module, text) for module, texts in modules.items() for text in texts[1:]]
    n = min(len(spare), max(0, cap - len(modules)))
    chosen = {module: texts[:1] for module, texts in modules.items()}
    for module, text in rng.sample(spare, n):
        chosen[module].append(text)
    return chosen


def _deal(modules: Modules, rng: random.Random) -> dict[str, Modules]:
    """Modules, the largest first, each to the split that lacks most of its share; none is empty."""
    order = sorted(modules, key=lambda module: (-len(modules[module]), rng.random()))
    lacking = {split: share * _count(modules) for split, share in SHARES.items()}
    dealt: dict[str, Modules] = {split: {} for split in SHARES}
    for left, module in zip(range(len(order), 0, -1), order, strict=True):
        empty = [split for split in SHARES if not dealt[split]]
        split = max(empty if left <= len(empty) else SHARES, key=lacking.__getitem__)
        dealt[split][module] = modules[module]
        lacking[split] -= len(modules[module])
    return dealt


def _rows(dealt: dict[str, dict[str, Modules]], split: str, rng: random.Random) -> Rows:
    pairs = [
        (text, label)
        for label, parts in dealt.items()
        for texts in parts[split].values()
        for text in texts
    ]
    rng.shuffle(pairs)
    texts, labels = map(list, zip(*pairs, strict=True))
    return Rows(split, {"text": texts, "label": labels}, list(range(1, len(pairs) + 1)))


def _notes(packages: dict[str, Modules], parts: dict[str, Rows], cap: int) -> tuple[str, ...]:
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in parts.items())
    capped = sorted(name for name, modules in packages.items() if _count(modules) > cap)
    notes = [
        f"{sum(map(len, parts.values())):,} docstrings of {len(packages)} packages: "
        f"{', '.join(sorted(packages))}.",
        f"Split by module, so that no file is on both sides: {sizes}.",
    ]
    if capped:
        notes.append(f"Capped at {cap} examples for balance: {', '.join(capped)}.")
    return tuple(notes)
