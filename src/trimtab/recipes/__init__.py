"""Losses and settings over any method: what each recipe is, as data. No more is loaded here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A way of training that papers have named: its module, the method that it trains unless
    another is attached (None: it has none of its own), how it is used, and whether `tune` takes it
    as `--recipe`."""

    name: str
    paper: str
    about: str
    method: str | None
    module: str
    use: str
    by_tune: bool = False


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
            "trimtab.attach(model, trimtab.IA3()), model being a language model, then "
            "trimtab.recipes.t_few.train(model, tokenizer, examples)",
        ),
        Recipe(
            "aut-few",
            "arXiv:2305.12576",
            "t-few with instructions retrieved, and descriptions of the classes found in the data "
            "and chosen by cross-validation",
            "ia3",
            "trimtab.recipes.aut_few",
            "trimtab.recipes.aut_few.fit(model, tokenizer, texts, labels), model being a language "
            "model, preferably one that follows instructions",
        ),
        Recipe(
            "distill",
            "arXiv:1503.02531",
            "training on a teacher's logits and hidden states beside the labels",
            None,
            "trimtab.recipes.distill",
            "trimtab tune --recipe distill --teacher with a finished run or a model, or "
            "trimtab.recipes.distill.Distiller(student, teacher) as the loss of a loop",
            by_tune=True,
        ),
        Recipe(
            "reptile",
            "arXiv:1803.02999",
            "a start from which few examples are enough, found over many small tasks",
            None,
            "trimtab.recipes.reptile",
            "list(trimtab.recipes.reptile.reptile(model, tasks)), an adapter being attached; save "
            "it and begin there, trimtab tune --start-from",
        ),
    )
}
"""Every recipe, by name."""
