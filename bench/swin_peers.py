"""Peers of SpectocloudViT: transformers' Swin of the same stages, in PyTorch and ONNX Runtime.

Needs the extra `peers`. The peer is the encoder alone: 128 x 64 numbers in, the last map out, with
neither conditions nor points.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec

import numpy as np

from kmidi_mlx.config import SpectocloudVitConfig
from kmidi_mlx.errors import KmidiError

PACKAGES = ("torch", "transformers", "onnxruntime", "onnxscript")

Work = Callable[[], object]


def missing_packages() -> list[str]:
    """What of the extra `peers` is not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def swin_peers(config: SpectocloudVitConfig, threads: int) -> tuple[dict[str, Work], int]:
    """Make one pass of the peers at batch 1.

    Args:
        config: sizes of stages, patches, windows and heads.
        threads: of PyTorch and of ONNX Runtime.

    Returns:
        Calls that run one pass each, by the peer's name, and the number of the peer's weights.

    Raises:
        KmidiError: if the packages are missing, or the two peers differ.
    """
    if missing := missing_packages():
        raise KmidiError(
            f"Section frame runs beside transformers' Swin, but {' and '.join(missing)} cannot be "
            "found: pip install -e '.[peers]', or leave the section out."
        )
    import onnxruntime
    import torch
    from transformers import SwinConfig, SwinModel
    from transformers.models.swin.modeling_swin import SwinAttention

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    heads = [dim // config.head_dim for dim in config.dims]
    peer = SwinConfig(
        image_size=(config.mel_bands, config.window_frames),
        patch_size=config.patch_size,
        num_channels=1,
        embed_dim=config.dims[0],
        depths=list(config.depths),
        num_heads=heads,
        window_size=config.window_size,
        mlp_ratio=float(config.mlp_ratio),
        attn_implementation="eager",
    )
    model = SwinModel(peer, add_pooling_layer=False)
    # windows shrink with the map; transformers' position biases do not
    for stage, (dim, count) in enumerate(zip(config.dims, heads, strict=True)):
        side = config.window_frames // config.patch_size // 2**stage
        if side < config.window_size:
            for block in model.encoder.layers[stage].blocks:
                block.attention = SwinAttention(peer, dim, count, window_size=side)
    model.eval()
    image = torch.rand(1, 1, config.mel_bands, config.window_frames)

    def eager() -> np.ndarray:
        with torch.no_grad():
            return model(image).last_hidden_state.numpy()

    class LastMap(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.swin = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.swin(pixels).last_hidden_state

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(LastMap().eval(), (image,), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {session.get_inputs()[0].name: image.numpy()}

    def onnx() -> np.ndarray:
        return session.run(None, given)[0]

    if np.abs(eager() - onnx()).max() > 1e-3:
        raise KmidiError("ONNX Runtime computes another Swin than PyTorch: the times mean nothing.")
    weights = sum(weight.numel() for weight in model.parameters())
    return {"PyTorch eager": eager, "ONNX Runtime": onnx}, weights
