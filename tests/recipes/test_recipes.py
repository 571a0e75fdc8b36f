"""The list of recipes says what there is."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import trimtab
from trimtab.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_there(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.method is None or recipe.method in trimtab.methods()
    told = importlib.import_module(recipe.module).__doc__
    assert told is not None
    assert recipe.paper in told


def test_the_list_alone_loads_nothing_heavy() -> None:
    code = "import sys, trimtab.recipes; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
