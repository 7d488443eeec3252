"""Modules without values, for weights that are about to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def hollow() -> Iterator[None]:
    """Parameters that are made within it lie on torch's device "meta" and are not initialised.

    That device alone is not enough: there torch's `normal_`, with which `torch.nn.Embedding` begins, is written in
    Python and imports torch's compiler, which takes longer than all else that a small model needs.
    """
    with torch.device("meta"), _Untouched():
        yield


class _Untouched(TorchFunctionMode):
    """Leaves tensors as they are that would be initialised."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_ or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
