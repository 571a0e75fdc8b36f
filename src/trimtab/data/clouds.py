"""Point clouds: the points of a surface in space, in no order.

A cell is the absolute path of a file, as an image's is: NumPy's `.npy` or `.npz` (its array
`points`, or its only one) without pickled objects, or `.xyz`, a point a line. Of a point more than
three numbers may be given, of which the first three are where it is. `points` reads a cell beside
training.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.data import media
from trimtab.data.cells import Kind, Places

if TYPE_CHECKING:
    import numpy as np

LEAST = 4  # points: fewer lie in a plane


def points(cell: media.Cell) -> np.ndarray:
    """(n, 3) in fp32."""
    import numpy as np

    found = _read(cell)
    if found.ndim != 2 or found.shape[1] < 3:
        raise ValueError(f"an array of {found.shape} has no points, which are rows of x, y and z")
    return np.ascontiguousarray(found[:, :3], dtype=np.float32)


def read_points(name: str, value: Any, places: Places = ()) -> media.Cell:
    import numpy as np

    cell, what = media.find(name, value, places), media.told(name, value)
    try:
        found = points(cell)
    except Exception as error:  # NumPy raises all kinds: ValueError, OSError, BadZipFile, KeyError
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{what} cannot be read as points ({reason})") from error
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise ValueError(f"{what} has a point that is nowhere, number {place + 1}: {found[place]}")
    if len(distinct := np.unique(found, axis=0)) < LEAST:
        raise ValueError(f"{what} has {len(distinct)} different points, where {LEAST} are needed")
    return cell


def _read(cell: media.Cell) -> np.ndarray:
    import numpy as np

    if isinstance(cell, str) and Path(cell).suffix.lower() == ".xyz":
        return np.loadtxt(cell, ndmin=2)
    data = cell if isinstance(cell, bytes) else Path(cell).read_bytes()
    found = np.load(io.BytesIO(data), allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found:
        names = found.files
        if "points" not in names and len(names) != 1:
            raise ValueError(f"of its arrays {', '.join(names)} none is called points")
        return found["points" if "points" in names else names[0]]


KINDS = {"points": Kind(read_points, media.path_or_bytes, empty=None, key=media.content, slow=True)}
