"""The tensors of a delta: as a method states them, and as its law is given them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from trimtab.core.site import Site


class Values:
    """The tensors of one delta as attributes, its own and its adapter's shared ones, cast to the
    dtype of the computation. `site` is where it acts, the `index`th of its method's `total` sites;
    `shared` names the tensors that those have in common. `tensors` has them by name, whatever their
    names are: a module trained whole may call its parameters as these facts are called.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        training: bool = False,
        site: Site | None = None,
        index: int = 0,
        total: int = 1,
        shared: Collection[str] = (),
    ) -> None:
        for name, tensor in tensors.items():
            setattr(self, name, tensor)
        self.training, self.index, self.total, self.shared = training, index, total, shared
        if site is not None:
            self.site = site
        self.tensors = dict(tensors)

    site: Site

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Param:
    """A named tensor of a delta. `trained` receives gradients; otherwise it is kept fixed, or is
    state that `after_backward` changes.

    `exact` keeps it in its own precision at use: for factors near one, which bf16 would round away.
    `rate` multiplies the optimizer's learning rate.
    """

    value: Tensor
    trained: bool = True
    exact: bool = False
    rate: float = 1.0
