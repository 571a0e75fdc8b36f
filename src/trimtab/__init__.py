"""Trimtab: parameter-efficient fine-tuning of PyTorch models.

What it offers is listed in `__init__.pyi`; a part is loaded when it is first asked for.
"""

import importlib.util
import threading
from typing import Any

import lazy_loader

__version__ = "0.1.0"
_get, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_lock = threading.RLock()  # two threads that import a part at once would each see half of it


def __getattr__(name: str) -> Any:
    """A part of the table of contents, or a module of the package."""
    with _lock:
        if name in __all__:
            return _get(name)
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
    from trimtab.core.errors import nearest

    raise AttributeError(f"trimtab offers no {name!r}; {nearest(name, __all__)}")
