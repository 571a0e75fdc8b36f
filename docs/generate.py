"""The parts of the documents that a script writes: figures, the table of methods, the modules.

python docs/generate.py            # write them
python docs/generate.py --check    # say whether they are true; exit code 1 if not
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from method_pages import page

from trimtab.capabilities import table

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "trimtab"
OVERHEAD = ROOT / "benchmarks" / "results" / "overhead.json"


def main() -> None:
    found, measured = table(), overheads()
    pages = ROOT / "docs" / "methods"
    wanted = {
        ROOT / "README.md": readme((ROOT / "README.md").read_text(encoding="utf8")),
        ROOT / "docs" / "modules.md": modules(),
        ROOT / "docs" / "methods.md": methods(found, measured),
        ROOT / "docs" / "conformance.md": conformance(),
        **{pages / f"{n}.md": page(n, row, measured.get(n)) for n, row in found.items()},
    }
    gone = [path for path in pages.glob("*.md") if path not in wanted]
    stale = [
        path for path, text in wanted.items() if not path.exists() or path.read_text("utf8") != text
    ]
    if "--check" in sys.argv:
        for path in [*stale, *gone]:
            print(f"{path.relative_to(ROOT)} is stale: run python docs/generate.py")
        sys.exit(1 if stale or gone else 0)
    for path in gone:
        path.unlink()
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path], encoding="utf8")
        print(f"wrote {path.relative_to(ROOT)}")


def readme(text: str) -> str:
    for name, content in (("speed", speed()), ("tree", tree())):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start not in text or end not in text:
            raise SystemExit(f"README.md lacks the marks {start} … {end}")
        before, rest = text.split(start, 1)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"
    return text


def speed() -> str:
    """The benchmark's table, from its JSON."""
    found = json.loads((ROOT / "benchmarks/results/speed.json").read_text(encoding="utf8"))
    names = {
        "trimtab": "Trimtab",
        "exact": "Trimtab, with exact products",
        "peer_b": "HF PEFT, tuned as well as we know how",
        "peer_a": "HF PEFT, as its guides show it",
        "full_b": "full fine-tuning, the Trainer, tuned",
        "full_a": "full fine-tuning, the Trainer as its guides show it",
    }
    names = {one: name for one, name in names.items() if one in found["median_seconds"]}
    rows = ["| | seconds | accuracy, 95 % | Trimtab is |", "|---|---|---|---|"]
    for one, name in names.items():
        accuracy = found["accuracy"][one]
        ratio = f"{found['ratios'][one]:.1f} times as fast" if one in found["ratios"] else ""
        rows.append(
            f"| {name} | {found['median_seconds'][one]:.1f} "
            f"| {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] | {ratio} |"
        )
    machine = found["hardware"]
    rounds = len(found["rounds"])
    about = (
        f"{found['work']}; `{found['data']}`; medians of {rounds} alternating rounds, seconds of "
        f"the training loop; {machine['cores']} cores of an {machine['processor']} "
        f"({machine['cpu_capability']}), torch {found['versions']['torch']}."
    )
    return "\n".join([*rows, "", about])


def tree() -> str:
    """Every package with the first sentence of its docstring."""
    folders = {f"{path.parent.name}/": path for path in sorted(PACKAGE.glob("*/__init__.py"))}
    return listing(folders)


def modules() -> str:
    """Every module with the first sentence of its docstring, package by package."""
    parts = ["# Modules", "", "A line on each, from its docstring; a script writes this page."]
    for folder in [PACKAGE, *sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))]:
        files = {path.name: path for path in sorted(folder.glob("*.py"))}
        if folder != PACKAGE:
            parts += ["", f"## {folder.name}"]
            parts += ["", f"{first_line(files.pop('__init__.py'))}."]
        parts += ["", listing({name: path for name, path in files.items() if first_line(path)})]
    return "\n".join([*parts, ""])


def listing(told: dict[str, Path]) -> str:
    width = 2 + max(map(len, told))
    return "\n".join(["```", *(f"{k:<{width}}{first_line(v)}" for k, v in told.items()), "```"])


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring, as far as its first line goes."""
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
    paragraph = " ".join(told.split("\n\n")[0].split())
    sentence = re.split(r"\.(?:\s|$)", paragraph)[0]
    return sentence if len(sentence) <= 100 else sentence[:99].rstrip(" ,") + "…"


def methods(found: dict[str, dict[str, Any]], measured: dict[str, dict[str, Any]]) -> str:
    """The table of `trimtab methods`, found by probing."""
    from trimtab.capabilities import HEAD, NOTE, cells, recipes

    head = (*HEAD, "forward", "step")
    lines = [
        "# Methods",
        "",
        "Found by trying each (`trimtab methods`), never typed by hand. What each holds, on all",
        "architectures, is in [conformance.md](conformance.md); how well each learns, in",
        "[quality.md](quality.md). A name leads to its page: equation, options, a program.",
        "",
        "*Kind* is what its law changes (see [the words](glossary.md)), *targets* where it acts",
        "unless told otherwise, *acts on* what it was seen to act on. *Needs* are facts of a call",
        "that it cannot do without. *HF PEFT* is the type of its files there, *lr* where a search",
        "for the learning rate starts.",
        "",
        "*Forward* is the time of a forward pass, unmerged, over the base's; *step* that of a",
        "forward and backward pass over full fine-tuning's: medians of alternating rounds, a BERT",
        "of 2 blocks of width 768, 8 texts of 64 tokens,",
        f"{machine()} (`trimtab methods --overhead`).",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for name, row in found.items():
        first, *rest = *cells(name, row), *times(measured.get(name))
        lines.append(f"| {' | '.join([f'[`{first}`](methods/{name}.md)', *rest])} |")
    lines += ["", NOTE.replace("*", "\\*"), "", "## Recipes", ""]
    lines += ["Ways of training a method: [recipes.md](recipes.md).", ""]
    lines += ["| recipe | method | what it is | paper |", "|---|---|---|---|"]
    for name, row in recipes().items():
        method = f"`{row['method']}`" if row["method"] else "any"
        lines.append(f"| `{name}` | {method} | {row['about']} | {row['paper']} |")
    return "\n".join(lines) + "\n"


def overheads() -> dict[str, dict[str, Any]]:
    """What `trimtab methods --overhead` measured, by method."""
    return json.loads(OVERHEAD.read_text(encoding="utf8"))["methods"]


def machine() -> str:
    told = json.loads(OVERHEAD.read_text(encoding="utf8"))
    facts = told["hardware"]
    return f"{facts['cores']} cores of an {facts['processor']}, torch {told['versions']['torch']}"


def times(found: dict[str, Any] | None) -> tuple[str, str]:
    """The two ratios as words; of a method that was not measured yet, that."""
    if found is None:
        return "not run", "not run"
    forward, step = (f"{found[key]:.2f}" if found[key] else "–" for key in ("forward", "step"))
    return forward, step


def conformance() -> str:
    """The table of `trimtab methods --probe`, from its JSON."""
    from trimtab.testing.conformance import read
    from trimtab.testing.matrix import page

    return page(read(ROOT / "docs" / "conformance.json"))


if __name__ == "__main__":
    main()
