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
from kmidi_mlx.models.quantization import cast, quantize_base
from kmidi_mlx.quantization import DESCRIPTION
from kmidi_mlx.training.step import DTYPES

Model = TypeVar("Model", bound=nn.Module)


def first_model(
    config: RunConfig,
    build: Callable[[Any], Model],
    load: Callable[[Path, mx.Dtype, bool | None], Loaded[Model, Any]],
) -> Model:
    """Make the network of a run with the weights it starts from.

    Args:
        config: the run.
        build: the network of the section `model`.
        load: opens a trained one in a precision, and its quantised layers as they are or plain.

    Raises:
        KmidiError: when the base cannot be opened or is not built as `config` says, or the adapters
            do not suit it.
    """
    adapter = config.adapter
    if adapter.method == "none":
        model = build(config.model)
        model.initialise(config.training.seed)
        return model
    # only plain weights can all be trained
    loaded = load(Path(adapter.base), mx.float32, None if adapter.adapts else False)
    if loaded.config.model != config.model:
        raise KmidiError(
            f"{loaded.path} is built otherwise than the section `model` says; leave that section "
            "out."
        )
    model = loaded.model.train()
    if adapter.adapts:
        if adapter.base_bits and DESCRIPTION not in loaded.metadata:
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
