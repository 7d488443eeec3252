"""Tensors of a file under other names, or as other numbers than the file has, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from calotype.weights.container import Container

# In metadata: what a container knows of its network and shapes can't tell, as JSON with fields of its configuration
TOLD = "calotype_told"


class Made(NamedTuple):
    """A tensor that is made of what a file has.

    Attributes:
        shape: of what `read` gives.
        stored: the type in which the file has its numbers, as `Container.stored` says it.
        read: makes it; raises WeightsError where the file does not hold what it says.
    """

    shape: tuple[int, ...]
    stored: str
    read: Callable[[], Tensor]


def turned(container: Container, key: str, axes: tuple[int, ...]) -> Made:
    """A tensor of a container with its axes in another order."""
    shape = tuple(container.shapes[key][axis] for axis in axes)
    return Made(shape, container.stored(key), lambda: container.read(key).permute(axes).contiguous())


class Translated:
    """A container of tensors that are made of another's, or of a file's."""

    def __init__(
        self,
        tensors: Mapping[str, Made],
        *,
        kind: str,
        metadata: Mapping[str, str] | None = None,
        notices: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind
        self.metadata: Mapping[str, str] = metadata or {}
        self.notices = notices
        self._tensors = dict(tensors)
        self.shapes: Mapping[str, tuple[int, ...]] = {key: one.shape for key, one in self._tensors.items()}

    def stored(self, key: str) -> str:
        return self._tensors[key].stored

    def read(self, key: str) -> Tensor:
        return self._tensors[key].read()
