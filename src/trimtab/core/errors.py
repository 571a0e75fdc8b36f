"""Errors that a user can act on: what is wrong, where, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrimtabError(Exception):
    """A failed run. The command line prints the message alone and exits with `exit_code`."""

    exit_code = 1


class InputError(TrimtabError, ValueError):
    """Wrong use or wrong input: a name, a file, a value. Nothing was changed."""

    exit_code = 2


class SiteNotFound(InputError):
    """A target that names no module of the model."""


class AdapterMismatch(InputError):
    """A saved adapter that does not fit: another base, or a missing, extra or misshapen key."""


class StateError(TrimtabError, RuntimeError):
    """A verb called at a moment when it has no meaning, such as `activate` on a merged model."""


def nearest(word: str, known: Iterable[object], n: int = 3) -> str:
    """The known names closest to `word`, quoted, for the end of an error message."""
    names = list(dict.fromkeys(str(k) for k in known))
    same = [name for name in names if name.lower() == str(word).lower()]
    close = [*same, *difflib.get_close_matches(str(word), names, n=n, cutoff=0.5)]
    if close:
        return "nearest: " + ", ".join(repr(name) for name in dict.fromkeys(close[:n]))
    shown = ", ".join(repr(name) for name in names[:12]) + (", …" if len(names) > 12 else "")
    return f"known: {shown or 'none'}"
