"""A tokenizer for models that spell: one token a character, as their configuration lists them.

Such models come without a tokenizer's files. `grapheme_chars` and `phoneme_chars` in `config.json`
give the characters of sources and targets by token id, with a filler where an id means something
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.core.errors import InputError

_UNKNOWN = 3


class Characters:
    """Called as a tokenizer of transformers is, as far as a task calls one."""

    def __init__(self, config: Any) -> None:
        self.sources = {c: i for i, c in enumerate(config.grapheme_chars) if i > _UNKNOWN}
        self.targets = {c: i for i, c in enumerate(config.phoneme_chars) if i > _UNKNOWN}
        self.characters = {i: c for c, i in self.targets.items()}
        self.bos_token_id, self.eos_token_id = config.bos_token_id, config.eos_token_id
        self.pad_token_id = config.pad_token_id

    def __call__(
        self,
        texts: Sequence[str] | None = None,
        *,
        text_target: Sequence[str] | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        **_: Any,
    ) -> dict[str, list[list[int]]]:
        known = self.sources if texts is not None else self.targets
        limit = max_length if truncation else None
        given = texts if texts is not None else (text_target or ())
        if texts is None:
            self._refuse_unknown(given)
        return {"input_ids": [self._ids(text, known, limit) for text in given]}

    def _refuse_unknown(self, targets: Sequence[str]) -> None:
        """A source may hold what the model has no letter for; a target then cannot be learnt."""
        for row, target in enumerate(targets, start=1):
            if unknown := sorted(set(target) - set(self.targets)):
                raise InputError(
                    f"target {row}, {target!r:.60}, has {', '.join(map(repr, unknown[:5]))}, which "
                    f"the model cannot write; it writes {''.join(self.targets)}"
                )

    def _ids(self, text: str, known: dict[str, int], limit: int | None) -> list[int]:
        ids = [known.get(character, _UNKNOWN) for character in text]
        room = len(ids) if limit is None else max(0, limit - 2)
        return [self.bos_token_id, *ids[:room], self.eos_token_id]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(self.characters.get(int(i), "") for i in ids)

    def get_vocab(self) -> dict[str, int]:
        return {**self.sources, **self.targets}


def spells(config: Any) -> bool:
    return all(isinstance(getattr(config, key, None), str) for key in _LISTS)


_LISTS = ("grapheme_chars", "phoneme_chars")
