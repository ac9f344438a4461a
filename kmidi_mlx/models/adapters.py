"""Trained adapters in use: what they change is added to the weights, so that they cost no time.

Several adapters are added up: each changes the weights as it would alone, times its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

from kmidi_mlx.adapter_file import Adapter
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import lora

__all__ = ["AdaptedModel", "adapt"]


def adapt(model: nn.Module, adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Let a model compute with adapters from now on; errors as of `AdaptedModel.use`."""
    AdaptedModel(model).use(adapters)


class AdaptedModel:
    """A model whose adapters can be changed.

    A layer that adapters change is a plain one, also where the model's is quantised.

    Args:
        model: plain or quantised, in any precision; changed in place by `use`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._bases: dict[str, nn.Module] = {}

    def use(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        """Let the model compute with these adapters, by their scales, and no others.

        Raises:
            KmidiError: when one does not fit the model; the model is then as it was.
        """
        before = {name: self._module(name) for name in self._bases}
        self._put(self._bases)
        try:
            changes: dict[str, mx.array] = {}
            for adapter, scale in adapters:
                for name, change in _changes(self._model, adapter).items():
                    changes[name] = changes.get(name, 0.0) + scale * change
        except KmidiError:
            self._put(before)
            raise
        bases = {name: self._module(name) for name in changes}
        changed = {name: _changed(bases[name], change) for name, change in changes.items()}
        mx.eval([layer.parameters() for layer in changed.values()])
        self._put(changed)
        self._bases = bases

    def check(self, adapter: Adapter) -> None:
        """Find out whether an adapter fits; the model stays as it is.

        Raises:
            KmidiError: when it does not.
        """
        held = {name: self._module(name) for name in self._bases}
        self._put(self._bases)
        try:
            _changes(self._model, adapter)
        finally:
            self._put(held)

    def _module(self, name: str) -> nn.Module:
        return dict(self._model.named_modules())[name]

    def _put(self, modules: dict[str, nn.Module]) -> None:
        for name, module in modules.items():
            lora.replace_module(self._model, name, module)


def _changes(model: nn.Module, adapter: Adapter) -> dict[str, mx.array]:
    """Return what an adapter adds to the weights of each layer, fp32 `(outputs, inputs)`."""
    config = adapter.config
    try:
        lora.attach(model, config.targets, config.rank, config.alpha, kind=config.method)  # type: ignore[arg-type]
        lora.load_adapter(model, adapter.arrays)
        return {name: layer.change() for name, layer in lora.adapters(model).items()}
    except KmidiError as error:
        raise KmidiError(f"{adapter.path} does not fit the model: {error}") from error
    finally:
        lora.detach(model)


def _changed(base: nn.Module, change: mx.array) -> nn.Linear:
    """Return a plain layer with something added to the weights of another."""
    weight = lora.plain_weight(base)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in base)
    layer.weight = (weight.astype(mx.float32) + change).astype(weight.dtype)
    if "bias" in base:
        layer.bias = base.bias
    return layer.train(base.training)
