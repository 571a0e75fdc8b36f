"""What registers itself with the core by being imported: the methods, the kernels, the readers of
quantised maps and of other libraries' files. All of it is loaded when one of the core's tables is
first read or added to, so that `import trimtab` takes no time and nobody meets half a table.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading

METHODS = "trimtab.methods"
_PARTS = ("trimtab.kernels", "trimtab.quant", "trimtab.store")
_lock = threading.RLock()
_begun = _done = False


def load() -> None:
    """Load them once; another thread waits until they are there."""
    global _begun, _done
    if _done:
        return
    with _lock:
        if _begun:  # they are loading, and fill the tables or read them as far as they are
            return
        _begun = True
        try:
            for part in _PARTS:
                importlib.import_module(part)
            own = importlib.import_module(METHODS)
            for method in pkgutil.iter_modules(own.__path__, f"{METHODS}."):
                importlib.import_module(method.name)
            _done = True
        finally:
            _begun = _done
