"""Kernel tests run on a GPU when there is one, and under Triton's interpreter on a CPU otherwise.

The interpreter has to be on before a kernel is decorated. Where other tests imported triton first, the library
functions it decorated for compilation (tl.sum, tl.max …) are put under the interpreter here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

ON_GPU = torch.cuda.is_available()


def _interpret_library_functions() -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for module in (tl, tl.core, tl.standard):
        for name, function in list(vars(module).items()):
            if isinstance(function, JITFunction):
                setattr(module, name, InterpretedFunction(function.fn))


def _accept_one_element_arrays_as_indices() -> None:
    """NumPy 2.4 refuses int() of the one-element arrays that the interpreter of Triton 3.6 keeps scalars in."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
    _interpret_library_functions()
    _accept_one_element_arrays_as_indices()


os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, so a row that a kernel forgot to write cannot pass; nondeterministic operations raise."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> str:
    return "cuda" if ON_GPU else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not ON_GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
