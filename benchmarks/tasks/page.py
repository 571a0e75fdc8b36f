"""The table of docs/tasks.md, from results/tasks/*.json: `python benchmarks/tasks/page.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rows import ROWS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "tasks"
PAGE = ROOT / "docs" / "tasks.md"
HEAD = (
    "work",
    "metric",
    "method",
    "trained",
    "base or head only",
    "adapted, 95 %",
    "better by, paired",
    "seconds",
    "peak",
)


def main() -> None:
    found = [json.loads(path.read_text(encoding="utf8")) for path in sorted(RESULTS.glob("*.json"))]
    lines = [" | ".join(("", *HEAD, "")).strip(), "| --- " * len(HEAD) + "|"]
    lines += [" | ".join(("", *line(one), "")).strip() for one in found]
    page = PAGE.read_text(encoding="utf8")
    made = f"<!-- results -->\n{coverage()}\n\n{chr(10).join(lines)}\n<!-- /results -->"
    PAGE.write_text(
        re.sub("<!-- results -->.*<!-- /results -->", lambda _: made, page, flags=re.S),
        encoding="utf8",
    )


def coverage() -> str:
    """What is there, of what `make tasks` runs."""
    asked = {f"{name}-{method}" for name, row in ROWS.items() for method in row.methods}
    there = asked & {path.stem for path in RESULTS.glob("*.json")}
    none = [
        name for name, row in ROWS.items() if not any(f"{name}-{m}" in there for m in row.methods)
    ]
    rest = f" Nothing is there of {', '.join(f'`{name}`' for name in none)}." if none else ""
    rows = f"{len(ROWS) - len(none)} of {len(ROWS)} rows"
    return f"{len(there)} of {len(asked)} runs are there, over {rows}.{rest}"


def line(found: dict[str, Any]) -> tuple[str, ...]:
    less = "" if found["higher_is_better"] else ", less is better"
    baselines = found["baselines"]
    known = "head" if baselines.get("head") else "base"
    gain, sign = found["gain_over"][known], 1 if found["higher_is_better"] else -1
    low, high = sorted((sign * gain["low"], sign * gain["high"]))
    return (
        f"{found['task']}: {found['data']}, {found['model']}, {found['steps']} steps",
        found["metric"] + less,
        f"`{found['method']}`",
        f"{found['trainable'] / found['total']:.2%}",
        f"{number(baselines[known]['value'])} ({known})",
        f"{number(found['test']['value'])} [{number(found['test']['low'])}, "
        f"{number(found['test']['high'])}]",
        f"{sign * gain['value']:+.3f} [{low:+.3f}, {high:+.3f}]",
        f"{found['train_seconds']:.0f}",
        f"{found['peak_memory_bytes'] / 2**20:,.0f} MiB",
    )


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


if __name__ == "__main__":
    main()
