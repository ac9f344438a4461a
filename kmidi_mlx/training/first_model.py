"""The network that a run begins with: drawn weights, or a trained base that is fine-tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from kmidi_mlx.checkpoint_model import Loaded
from kmidi_mlx.config import RunConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import lora
from kmidi_mlx.models.quantization import cast, quantize_base
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
        KmidiError: when the base cannot be opened or is not built as `config` says, or the adapters
            do not suit it.
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


def digest_of(model: nn.Module) -> str:
    """Return what tells the weights of a base from others; adapters on it do not count."""
    seen = hashlib.sha256()
    for name, array in sorted(tree_flatten(model.parameters())):
        plain = name.replace(".base.", ".")
        if plain.rpartition(".")[2] in lora.LEARNT:
            continue
        whole = array if array.dtype == mx.uint32 else array.astype(mx.float32)
        seen.update(plain.encode())
        seen.update(np.ascontiguousarray(whole).tobytes())
    return seen.hexdigest()[:16]
