"""Losses and settings over any method: what each recipe is, as data. No more is loaded here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A way of training that papers have named: its module, and the method that it trains unless
    another is attached (None: it has none of its own)."""

    name: str
    paper: str
    about: str
    method: str | None
    module: str


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "t-few",
            "arXiv:2205.05638",
            "few-shot classification by answer choices: language-modelling, unlikelihood and "
            "length-normalised losses",
            "ia3",
            "trimtab.recipes.t_few",
        ),
        Recipe(
            "aut-few",
            "arXiv:2305.12576",
            "t-few with instructions retrieved, and descriptions of the classes found in the data "
            "and chosen by cross-validation",
            "ia3",
            "trimtab.recipes.aut_few",
        ),
        Recipe(
            "distill",
            "arXiv:1503.02531",
            "training on a teacher's logits and hidden states beside the labels",
            None,
            "trimtab.recipes.distill",
        ),
    )
}
"""Every recipe, by name."""
