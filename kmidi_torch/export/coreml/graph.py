"""The traced graph of a module: what coremltools cannot convert is folded into constants, and the
graph can be run in PyTorch with its constants rounded as those of a package are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from kmidi_torch.export.coreml.chatter import quiet
from kmidi_torch.export.coreml.precision import ComputesInHalf, is_weight
from kmidi_torch.export.exportable import Exportable

__all__ = ["Graph", "run_module", "trace"]

_ATEN = torch.ops.aten
#: What takes only type and size from its first input.
_LIKE = (
    _ATEN.new_zeros.default,
    _ATEN.new_ones.default,
    _ATEN.new_full.default,
    _ATEN.zeros_like.default,
    _ATEN.ones_like.default,
    _ATEN.full_like.default,
)


def _where(condition: Tensor, value: Tensor, other: float) -> Tensor:
    return torch.where(condition, value, value.new_full((), other))


#: What coremltools does not know, told with what it knows.
_DECOMPOSED = {_ATEN.where.ScalarOther: _where}


@dataclass(frozen=True)
class Graph:
    """A traced module.

    Attributes:
        program: to be converted.
        module: the same to be run.
        outputs: names of what it returns.
    """

    program: torch.export.ExportedProgram
    module: fx.GraphModule
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run it in PyTorch.

        Args:
            inputs: by name, in the order of the module's.
        """
        return run_module(self.module, self.outputs, inputs)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return what layers multiply by, under the names that a converted program gives it."""
        signature = self.program.graph_signature
        origins = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        return {
            node.name: self.program.state_dict[origins[node.name]].detach().numpy()
            for node in self.program.graph.nodes
            if node.op == "placeholder" and node.name in origins and is_weight(node)
        }

    def rounded(
        self,
        computes_in_half: ComputesInHalf | None,
        quantise: Callable[[NDArray[Any]], NDArray[Any]] | None,
    ) -> Graph:
        """The same with its constants as a package holds them.

        Args:
            computes_in_half: tells which nodes are in fp16 and so take constants in fp16; None:
                none are.
            quantise: a weight to what is left of it; None: nothing is quantised.
        """
        with quiet():
            module = copy.deepcopy(self.module)
        in_half = computes_in_half(module.graph) if computes_in_half else set()
        for node in module.graph.nodes:
            if node in in_half:
                node.args = map_aggregate(node.args, _to_half_number)
                node.kwargs = map_aggregate(node.kwargs, _to_half_number)
            if node.op != "get_attr":
                continue
            value = _attribute(module, node.target)
            if not value.is_floating_point():
                continue
            array = value.detach().numpy()
            if in_half.intersection(node.users):
                array = array.astype(np.float16)
            if quantise is not None and is_weight(node):
                array = quantise(array)
            _set_attribute(module, node.target, torch.from_numpy(array.astype(np.float32)))
        module.recompile()
        return replace(self, module=module)


def run_module(
    module: nn.Module, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run a module with arrays.

    Args:
        module: to run.
        outputs: names of what it returns.
        inputs: by name, in the order in which it takes them.
    """
    with torch.no_grad():
        found = module(*(torch.from_numpy(value) for value in inputs.values()))
    several = found if isinstance(found, tuple) else (found,)
    return {name: value.numpy() for name, value in zip(outputs, several, strict=True)}


def _to_half_number(argument: Any) -> Any:
    return float(np.float16(argument)) if isinstance(argument, float) else argument


def trace(exportable: Exportable) -> Graph:
    """Trace a module and fold what does not depend on its inputs or weights."""
    with quiet():
        program = exportable.traced().run_decompositions(_DECOMPOSED)
        module = program.module()
        if _fold(module):
            samples = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
            inputs = tuple(torch.zeros(value.shape, dtype=value.dtype) for value in samples)
            with torch.no_grad():
                program = torch.export.export(module, inputs, strict=False)
            program = program.run_decompositions({})
            module = program.module()
    return Graph(program, module, tuple(port.name for port in exportable.outputs))


def _fold(module: fx.GraphModule) -> bool:
    """Compute what depends on fixed numbers alone, if some of it is made to be like an input, which
    hides from coremltools that it is fixed; tell whether it was so."""
    graph = module.graph
    trained = {name for name, _ in module.named_parameters()}
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in trained:
            known[node] = _attribute(module, node.target)
        if node.op != "call_function" or node.target is _ATEN._assert_tensor_metadata.default:
            continue
        needed = node.all_input_nodes[1 if node.target in _LIKE else 0 :]
        if all(source in known for source in needed):
            known[node] = node.target(
                *fx.map_arg(node.args, lambda source: _known(known, source)),
                **fx.map_arg(node.kwargs, lambda source: _known(known, source)),
            )
    if not any(node.target in _LIKE for node in known):
        return False
    folded = [
        node
        for node in known
        if node.op == "call_function" and not all(user in known for user in node.users)
    ]
    for index, node in enumerate(folded):
        name = f"folded_{index}"
        module.register_buffer(name, known[node].contiguous().clone())
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        node.replace_all_uses_with(constant)
    graph.eliminate_dead_code()
    module.recompile()
    return True


def _known(known: Mapping[fx.Node, Any], node: fx.Node) -> Any:
    if node in known:
        return known[node]
    value = node.meta["val"]
    return torch.empty(value.shape, dtype=value.dtype)


def _attribute(module: fx.GraphModule, target: str) -> Tensor:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    tensor: Tensor = value
    return tensor


def _set_attribute(module: fx.GraphModule, target: str, value: Tensor) -> None:
    _attribute(module, target).data = value
