"""Bottleneck adapters of the library `adapters` (AdapterHub): its folder, read.

    h' = h + scaling · (U f(D z + d) + u)

h is what a sublayer gives and r its residual. By default z = h; z = N(h + r) with
`original_ln_before`, N being the norm that takes h' + r afterwards, or nothing where norms precede
their sublayers; z = r with `is_parallel`.
"""

from trimtab.store.adapterhub.interpreting import interpret as interpret
from trimtab.store.adapterhub.reading import holds as holds
from trimtab.store.adapterhub.reading import read as read
