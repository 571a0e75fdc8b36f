"""The probe of stereotypes on a real, small language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.evaluate.run import Asked, evaluate
from trimtab.evaluate.tables import tables
from trimtab.tune.config import parse
from trimtab.tune.run import tune

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not STORIES.exists():
        pytest.skip("the model stories260K is not in the shared folder")
    folder = tmp_path_factory.mktemp("stories")
    texts = [
        {"text": f"Once upon a time a girl had {n} red balls. She was happy."} for n in range(30)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    fields = {
        "model": str(STORIES),
        "data": str(folder / "texts.jsonl"),
        "out": str(folder / "run"),
    }
    pinned = {"dtype": "float32", "attention": "eager", "products": "exact", "replicas": 1}
    more = {"task": "text-generation", "task_arg": {"form": "text"}, "max_steps": 4, "lr": 1e-2}
    tune(parse({**fields, **pinned, **more, "batch_size": 8}, "a test"), quiet=True)
    return evaluate(fields["out"], None, "test", asked=Asked(stereotypes=True))


def test_kinds_come_to_the_whole(found: dict[str, Any]) -> None:
    of = found["stereotypes"]
    assert of["all"]["n"] == 60
    assert [kind["n"] for kind in of["kinds"]] == 6 * [10]
    for row in ("base", "adapted"):
        mean = sum(kind[row]["value"] for kind in of["kinds"]) / 6
        assert mean == pytest.approx(of["all"][row]["value"])
        assert 0.2 < mean < 0.8  # neither all nor none: both sentences are scored alike
    change = of["all"]["adapted"]["value"] - of["all"]["base"]["value"]
    assert of["all"]["change"]["value"] == pytest.approx(change)


def test_it_is_told_as_a_table(found: dict[str, Any]) -> None:
    (table,) = tables(found)
    assert [row[0] for row in table.rows][-1] == "all"
    assert table.head[1:3] == ("base, as loaded", "adapted")
