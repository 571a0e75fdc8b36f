"""A plan and a run as a column of blocks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trimtab.cli.drawing import inspect
from trimtab.compare.column import Cell, arrange, draw
from trimtab.core.errors import InputError
from trimtab.plan import Entry, Plan, write

PLAN = Plan(
    (
        *(
            Entry(
                f"encoder.layer.{block}.{kind}",
                "lora",
                rank,
                gain=0.1,
                cost=10 * rank,
                sensitivity=block + rank / 10,
            )
            for block in range(3)
            for rank, kind in enumerate(("query", "value"))
        ),
        Entry("pooler.<dense>", "bitfit", None, True, cost=5, sensitivity=0.5),
    ),
    budget="1k",
    estimator="nuclear",
    parameters=35,
)


def test_the_last_block_is_on_top_and_kinds_stand_in_columns() -> None:
    cells = [Cell(f"a.{n}.{kind}", n, 1, "") for n in range(3) for kind in ("q", "v")]
    column = arrange([*cells, Cell("head", None, 0, "")])
    assert [name for name, _ in column.rows] == ["2", "1", "0"]
    assert [kind for kind, _ in column.kinds] == ["q", "v"]
    assert [name for name, _ in column.outside] == ["head"]
    tops = {box.title.split(":")[0]: box.y for box in column.boxes}
    assert tops["a.2.q"] == tops["a.2.v"] < tops["a.1.q"] < tops["a.0.q"] < tops["head"]
    assert len({box.x for box in column.boxes if ".v" in box.title}) == 1


def test_more_sensitive_is_darker_and_more_spent_is_longer() -> None:
    cells = [
        Cell(f"a.{n}.q", worth, spent, "") for n, (worth, spent) in enumerate(((1, 0), (4, 2)))
    ]
    weak, strong = arrange(cells).boxes
    shade = [sum(map(int, re.findall(r"\d+", box.fill))) for box in (weak, strong)]
    assert shade[1] < shade[0]
    assert (weak.bar, strong.bar > 50) == (0, True)


def test_a_plan_is_drawn_in_a_page_of_its_own(tmp_path: Path) -> None:
    path, picture = tmp_path / "plan.yaml", tmp_path / "plan.html"
    write(PLAN, path)
    assert inspect(str(path), picture, json_=True)
    page = picture.read_text()
    assert page.count("<g><title>") == 7
    assert "pooler.&lt;dense&gt;" in page
    assert "<dense>" not in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)", page)
    with pytest.raises(InputError, match="it is a page"):
        inspect(str(path), tmp_path / "plan.png", json_=True)


def test_the_same_cells_give_the_same_page(tmp_path: Path) -> None:
    one, two = tmp_path / "1.html", tmp_path / "2.html"
    for path in (one, two):
        draw([Cell("a.0.q", 1.0, 1.0, "rank 1")], "t", "about", "parameters", path)
    assert one.read_text() == two.read_text()
