"""Making a Core AI asset of a module, and running it in Apple's own runtime.

An asset is a folder that ends in `.aimodel`: `main.mlirb`, the program with its weights for any
processor, its hash, and `metadata.json`. macOS 27 and its sister systems specialise it for their
processors when it is loaded. The packages of Core AI carry a runtime of their own that runs it on
the CPU of other systems, Linux included.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kmidi_torch.export.exportable import Axis, Exportable

__all__ = ["FREE", "CoreaiRun", "build", "check_packages", "describe", "fixed_shapes", "save"]

#: Function of an asset whose lengths the caller chooses with every call.
FREE = "main"
_FIXED = "fixed"

Lengths = Mapping[str, int]
Shapes = dict[str, tuple[int, ...]]


def check_packages() -> None:
    """Import Core AI's packages.

    Raises:
        ImportError: when one is missing.
    """
    with _quiet():
        for package in ("coreai.authoring", "coreai_torch"):
            importlib.import_module(package)


def fixed_shapes(exportable: Exportable, lengths: Lengths) -> Shapes:
    """Return the shapes of the inputs that have free lengths.

    Args:
        exportable: the module with its inputs.
        lengths: of the axes, by name, in steps of each.
    """
    return {
        port.name: tuple(
            lengths[axis.name] * axis.step if isinstance(axis, Axis) else axis for axis in port.axes
        )
        for port in exportable.inputs
        if any(isinstance(axis, Axis) for axis in port.axes)
    }


def build(exportable: Exportable, fixed: Mapping[str, Lengths]) -> Any:
    """Translate a module: a `coreai.authoring.AIProgram` with one copy of the weights.

    Args:
        exportable: the module with its inputs and outputs; it is not changed.
        fixed: lengths of the functions `fixed_<name>`, beside `main` where all stay free.
    """
    with _quiet():
        from coreai_torch import TorchConverter, get_decomp_table

        turned = replace(exportable, module=_turned(copy.deepcopy(exportable.module)))
        kept = get_decomp_table()
        # Core AI multiplies whole batches; taking them apart, with free lengths, would take minutes
        kept.pop(torch.ops.aten.matmul.default)
        traced = turned.traced().run_decompositions(kept)
        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
        converter.register_torch_lowering("aten::matmul.default")(_matmul)
        for function in (FREE, _FIXED):
            converter.add_exported_program(
                traced,
                input_names=[port.name for port in exportable.inputs],
                output_names=[port.name for port in exportable.outputs],
                entrypoint_name=function,
            )
        program = converter.to_coreai()
        program.set_static_shape_config(
            _FIXED, {name: fixed_shapes(exportable, lengths) for name, lengths in fixed.items()}
        )
        return program


def _matmul(values: Mapping[str, Any], node: torch.fx.Node, location: Any) -> Any:
    """Translate a product of matrices; see `TorchConverter.register_torch_lowering`."""
    from coreai._compiler.dialects import coreai

    left, right = (values[str(factor)] for factor in node.args)
    return coreai.broadcasting_batch_matmul(left, right, loc=location)


class _Product(nn.Module):
    """A linear layer whose matrix is stored as it is used.

    Core AI's own runtime would turn `(out, in)` round anew in every call.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", linear.weight.detach().T.contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def _turned(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _Product(child))
        else:
            _turned(child)
    return module


def save(program: Any, path: Path, description: str) -> None:
    """Write the asset.

    Args:
        program: from `build`.
        path: of the folder to make.
        description: what the asset is, for people.
    """
    from coreai.runtime import AIModelAssetMetadata

    metadata = AIModelAssetMetadata()
    metadata.model_description = description
    program.save_asset(path, metadata)


def describe(path: Path, metadata: Mapping[str, Any]) -> None:
    """Write into an asset what it is, for programs; the program in it stays as it is.

    Args:
        path: of the asset.
        metadata: JSON values.
    """
    from coreai.authoring import AIModelAsset

    def write(known: Any) -> None:
        for name, value in metadata.items():
            known.set_custom(name, value)

    AIModelAsset.load(path).update_metadata(write)


class CoreaiRun:
    """An asset in Core AI's runtime: inputs by name to outputs by name.

    Where no Core AI is in the system, the runtime that the packages carry interprets the asset on
    one thread of the CPU. Use it as a context manager: the runtime keeps a copy of the weights in
    a temporary folder.

    Args:
        path: of the asset.
    """

    def __init__(self, path: Path) -> None:
        with _quiet():
            from coreai.authoring import AIModelAsset
            from coreai.runtime import NDArray as CoreaiArray

        self._array = CoreaiArray
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        asset = AIModelAsset.load(path)
        self._model = self._loop.run_until_complete(
            self._stack.enter_async_context(asset.executable())
        )
        self._functions: dict[str, Any] = {}

    def __enter__(self) -> CoreaiRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._functions.clear()
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()

    @property
    def functions(self) -> list[str]:
        """Names of all functions."""
        return list(self._model.function_names)

    def __call__(
        self, inputs: Mapping[str, NDArray[Any]], function: str = FREE
    ) -> dict[str, NDArray[Any]]:
        """Run a function once; a cache that has no places gets one that holds nothing."""
        if function not in self._functions:
            self._functions[function] = self._model.load_function(function)
        if "slots" in inputs and not len(inputs["slots"]):
            # Core AI broadcasts empty arrays as if they held something
            inputs = {**inputs, "slots": np.full(1, -1, np.int32)}
            for name in ("past_keys", "past_values"):
                inputs[name] = np.pad(inputs[name], ((0, 0), (0, 0), (0, 1), (0, 0)))
        given = {name: self._array(np.ascontiguousarray(value)) for name, value in inputs.items()}
        found = self._loop.run_until_complete(self._functions[function](given))
        # what comes out is a view of memory that the runtime uses again
        return {name: value.numpy().copy() for name, value in found.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the packages print, and warn of, away from the person."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", "coreai-torch has only been validated", UserWarning)
        # PyTorch's own use of what it gives up
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        yield
