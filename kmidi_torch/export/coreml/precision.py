"""Which operations of an fp16 package stay in fp32, told of a traced graph and of its conversion.

fp16 ends at 65504 and has 11 bits. A norm squares what it is given, and what is too large then
becomes infinite without a word; sums over time and quotients of small numbers lose what is asked
for. So these stay in fp32:

- all models: norms, as a whole or where they are written out;
- Spectocloud: what is measured of the sound (shares of energy, sines, logarithms) until it meets
  the first weights;
- the recogniser: everything but its products with weights over time, which are nearly all of it.

The rules are told twice, of PyTorch's graph (which constants are rounded, for the comparison) and
of coremltools' (what is converted how). The comparison fails where they do not agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["ComputesInHalf", "half_nodes", "half_selector", "is_weight"]

ComputesInHalf = Callable[[fx.Graph], set[fx.Node]]

_ATEN = torch.ops.aten
_LINEAR = _ATEN.linear.default
_MEAN = _ATEN.mean.dim
_NORMS = (_ATEN.layer_norm.default, _ATEN.rsqrt.default, _MEAN)
_MIL_NORMS = ("layer_norm", "rsqrt", "reduce_mean")


def is_weight(node: fx.Node) -> bool:
    """Tell whether a constant is what a layer multiplies by."""
    return any(user.target is _LINEAR and user.args[1] is node for user in node.users)


def half_nodes(model: str) -> ComputesInHalf:
    """Return what tells the nodes of a traced graph that an fp16 package computes in fp16."""

    def choose(graph: fx.Graph) -> set[fx.Node]:
        calls = [node for node in graph.nodes if node.op == "call_function"]
        if model == "emotion_recognizer":
            return {node for node in calls if _over_time(node)}
        half: set[fx.Node] = set()
        reached: set[fx.Node] = set()
        for node in calls:
            if node.target is _LINEAR or reached.intersection(node.all_input_nodes):
                reached.add(node)
            if not _is_norm(node) and (model != "spectocloud" or node in reached):
                half.add(node)
        return half

    return choose


def _over_time(node: fx.Node) -> bool:
    return node.target is _LINEAR and node.meta["val"].ndim == 3


def _is_norm(node: fx.Node) -> bool:
    if node.target is _ATEN.square.default:
        return any(user.target is _MEAN for user in node.users)
    if node.target is _ATEN.add.Tensor:
        first = node.args[0]
        return isinstance(first, fx.Node) and first.target is _MEAN
    return node.target in _NORMS


def half_selector(model: str) -> Callable[[Any], bool]:
    """Return what tells coremltools which of its operations to compute in fp16."""
    reached: dict[Any, bool] = {}

    def has_met_weights(operation: Any) -> bool:
        if operation is None:
            return False
        if operation not in reached:
            reached[operation] = _is_layer(operation) or any(
                has_met_weights(source) for source in _sources(operation)
            )
        return reached[operation]

    def choose(operation: Any) -> bool:
        if model == "emotion_recognizer":
            return _is_layer(operation) and operation.outputs[0].rank == 3
        if _is_mil_norm(operation):
            return False
        return model != "spectocloud" or has_met_weights(operation)

    return choose


def _is_layer(operation: Any) -> bool:
    # products with fixed matrices become `linear` too; traced parameters are named p_
    return operation.op_type == "linear" and str(operation.weight.name).startswith("p_")


def _sources(operation: Any) -> list[Any]:
    """Operations whose results an operation takes."""
    found = []
    for value in operation.inputs.values():
        found += [one.op for one in (value if isinstance(value, (list, tuple)) else [value])]
    return found


def _is_mil_norm(operation: Any) -> bool:
    kind = operation.op_type
    if kind == "mul" and operation.x is operation.y:
        return any(user.op_type == "reduce_mean" for user in operation.outputs[0].child_ops)
    if kind == "add" and operation.x.op is not None:
        return bool(operation.x.op.op_type == "reduce_mean")
    return kind in _MIL_NORMS
