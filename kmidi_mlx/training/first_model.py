"""The network that a run begins with: drawn weights, or a trained base that is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx import nn

from kmidi_mlx.checkpoint_model import Loaded
from kmidi_mlx.config import RunConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import lora
from kmidi_mlx.models.quantization import cast, quantize_base, quantized_layers
from kmidi_mlx.training.step import DTYPES

Model = TypeVar("Model", bound=nn.Module)


def first_model(
    config: RunConfig,
    build: Callable[[Any], Model],
    load: Callable[[Path, mx.Dtype], Loaded[Model, Any]],
) -> Model:
    """Make the network of a run with the weights it starts from.

    Args:
        config: the run.
        build: the network of the section `model`.
        load: opens a trained one in a precision.

    Raises:
        KmidiError: when the base cannot be opened, is not built as `config` says or is quantised
            where every weight is to be trained, or the adapters do not suit it.
    """
    adapter = config.adapter
    if adapter.method == "none":
        model = build(config.model)
        model.initialise(config.training.seed)
        return model
    loaded = load(Path(adapter.base), mx.float32)
    if loaded.config.model != config.model:
        raise KmidiError(
            f"{loaded.path} is built otherwise than the section `model` says; leave that section "
            "out."
        )
    if adapter.method == "full" and quantized_layers(loaded.model):
        raise KmidiError(
            f"{loaded.path} is quantised, and only adapters can learn over that; name the weights "
            "from before, or set adapter.method=lora."
        )
    model = loaded.model.train()
    if adapter.adapts:
        if adapter.base_bits:
            quantize_base(model, adapter.base_bits)
        cast(model, DTYPES[config.training.precision])
        seed = config.training.seed
        lora.attach(
            model,
            adapter.targets,
            adapter.rank,
            adapter.alpha,
            adapter.dropout,
            adapter.method,  # type: ignore[arg-type]
            seed,
        )
    return model
