"""What every method owes, as data: a law is a function that raises AssertionError where it is
broken and `NotApplicable` where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimtab.testing.architectures import ARCHITECTURES
from trimtab.testing.laws import (
    checkpointing,
    copies,
    counts,
    files,
    geometry,
    hf_peft,
    learning,
    many,
    merging,
    quantised,
    start,
    switching,
)
from trimtab.testing.laws.quantised import QUANTISED
from trimtab.testing.layers import LAYERS


@dataclass(frozen=True)
class Law:
    """`check(method, where)`, where being an architecture, or a layer for the law of layers.

    `number` is that of the law in the list of what every method owes.
    """

    name: str
    number: int
    says: str
    check: Callable[[Any, Any], None]
    over: tuple[Any, ...] = ARCHITECTURES


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("start", 1, "starts at the base", start.starts_at_the_base),
        Law("change", 2, "its parameters change the output", learning.changes_the_output),
        Law("gradients", 2, "what trains has gradients", learning.gradients_reach_what_trains),
        Law("merge", 3, "merged equals unmerged", merging.merged_equals_unmerged),
        Law("matrix", 3, "its matrix is the probed one", merging.law_equals_probe),
        Law("unmerge", 3, "unmerging restores every bit", merging.unmerge_restores),
        Law("export", 3, "merged, an ordinary model", merging.merged_is_ordinary),
        Law("files", 4, "saved and loaded, the same outputs", files.saved_is_loaded),
        Law("misfits", 4, "what does not fit is refused", files.misfits_are_refused),
        Law("hf-peft", 5, "HF PEFT's files, both ways", hf_peft.files_of_hf_peft),
        Law("copy", 6, "a deep copy is whole", copies.copies_are_whole),
        Law("pickle", 6, "a pickled model is whole", copies.pickles_are_whole),
        Law("compile", 6, "compiles as one graph", copies.compiles_without_a_break),
        Law("autocast", 6, "runs in autocast", copies.runs_in_autocast),
        Law("bf16", 6, "fp32 parameters over a bf16 base", copies.base_in_bf16),
        Law("move", 6, "a move to bf16 rounds nothing", copies.moves_keep_masters),
        Law("checkpointing", 6, "gradients, checkpointed", checkpointing.checkpointing),
        Law("re-entrant", 6, "the same, re-entrant", checkpointing.reentrant_checkpointing),
        Law("several", 7, "one of several as if alone", many.each_as_if_alone),
        Law("removal", 7, "removal leaves the rest", many.removal_leaves_the_rest),
        Law("stack", 7, "two in a stack act and train", many.stacks_train_both),
        Law("route", 7, "one adapter an example", many.routes_equal_one_at_a_time),
        Law("layers", 8, "every kind of layer", geometry.acts_or_says_why, LAYERS),
        Law("quantised", 9, "over quantised bases", quantised.over_a_quantised_base, QUANTISED),
        Law("counts", 10, "parameters as the formula says", counts.counts),
        Law("switch", 11, "no switch before backward", switching.switching_before_backward_raises),
        Law("free", 11, "free after backward", switching.switching_after_backward_is_free),
    )
}
