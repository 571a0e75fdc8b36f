"""What a run's methods ask of it: facts that it cannot give, positions, the whole last block, the
last step."""

from __future__ import annotations

from trimtab.core.errors import InputError, nearest
from trimtab.core.method import Combine, Intervention, Method, Prefix, Prompt
from trimtab.core.training import scheduled
from trimtab.methods.whole import Whole
from trimtab.recipes import RECIPES
from trimtab.tune import augmenting
from trimtab.tune.config import Config

_MISSING = {
    "task_ids": "a task for each example (task_ids), which no data file of this task holds",
    "over": "other adapters to combine, which tune takes with --from-library DIR",
}


def methods(config: Config) -> list[Method]:
    built = config.build_method()
    given = built.values() if isinstance(built, dict) else [built]
    each = [one for ones in given for one in (ones if isinstance(ones, list) else [ones])]
    return [part for method in dict.fromkeys(each) for part in method.parts()]


def _combines(method: Method) -> bool:
    """Whether it is said which adapters it is over: those of a library."""
    return isinstance(method, Combine) and bool(method.over)


def refuse(config: Config) -> None:
    """Methods that cannot be trained by this verb."""
    for method in methods(config):
        if missing := sorted(method.needs - ({"over"} if _combines(method) else set())):
            what = " and ".join(_MISSING.get(fact, fact) for fact in missing)
            raise InputError(
                f"--method {method.name} needs {what}: train it in a loop of your own, with "
                "trimtab.attach"
            )
        if isinstance(method, Whole):
            raise InputError(
                "--method whole trains modules beside another method: name them with --train, or "
                "choose --method full, layers or head"
            )

    _refuse_recipe(config)
    _refuse_augmentation(config)


def _refuse_augmentation(config: Config) -> None:
    augmenting.refuse(config.build_task(), config.augment)
    if config.augment and config.method == "head":
        raise InputError(
            "--method head trains on features that are computed once, which --augment would "
            "change each time: choose another method"
        )


_OF_DISTILL = {"temperature", "alpha"}


def _refuse_recipe(config: Config) -> None:
    if config.recipe is None:
        if config.teacher is not None or config.recipe_arg:
            raise InputError("--teacher and --recipe-arg belong to a recipe: add --recipe distill")
        return
    if config.recipe not in RECIPES:
        raise InputError(
            f"no recipe is called {config.recipe!r}; {nearest(config.recipe, RECIPES)}"
        )
    recipe = RECIPES[config.recipe]
    if not recipe.by_tune:
        raise InputError(
            f"--recipe {recipe.name}: tune trains classifiers on labels, and {recipe.name} is "
            f"{recipe.about}. It is used in Python: {recipe.use}; see docs/recipes.md"
        )
    if not config.build_task().one_vector:
        raise InputError(
            f"--recipe distill compares one row of logits an example, which --task {config.task} "
            "does not have: distil in a loop of your own, docs/recipes.md"
        )
    if config.teacher is None:
        raise InputError("--recipe distill needs --teacher: a finished run, or a model")
    if config.method == "head":
        raise InputError(
            "--method head trains on features that are computed once, without a teacher: choose "
            "another method with --recipe distill"
        )
    for key, value in config.recipe_arg.items():
        if key not in _OF_DISTILL:
            raise InputError(f"--recipe-arg: distill has no {key!r}; {nearest(key, _OF_DISTILL)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"--recipe-arg {key} is a number, not {value!r}")


def positions(config: Config) -> int:
    """How many positions prompts and prefixes take from what a text may have."""
    fronts = [m for m in methods(config) if isinstance(m, Prompt | Prefix)]
    return sum(int(front.arguments().get("length", 0)) for front in fronts)


def by_position(config: Config) -> bool:
    """Whether all laws act at each position by itself, so that those which nobody reads can be
    left out."""
    return not any(
        method.by_example
        or isinstance(method, Prompt)
        or (isinstance(method, Intervention) and method.reads_entry)
        for method in methods(config)
    )


def pruned(config: Config) -> bool:
    """Whether a method changes until the last step, so that only then its adapter is complete."""
    return any(scheduled(method) for method in methods(config))
