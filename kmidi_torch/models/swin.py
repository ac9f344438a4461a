"""Blocks of the hierarchical vision transformer: modulated norms, biased attention, patch merging.

Swin transformer (Liu et al. 2021, arXiv 2103.14030), with three changes that save kernels: windows
only where the map is large, a residual stream that stays in window order, and modulated norms
(Perez et al. 2018, arXiv 1709.07871; Peebles & Xie 2023, arXiv 2212.09748) instead of extra tokens.
No tensor has more than four axes; nothing is rolled or gathered once the biases are folded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kmidi_torch.models.layers import add_linear, merge_heads, split_heads

Activation = Callable[[Tensor], Tensor]
Modulation = tuple[Tensor, Tensor]

#: What a masked pair of tokens gets instead of its bias: finite, also in fp16.
MASKED = -1e4


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, arXiv 2109.08668)."""
    return torch.square(functional.relu(x))


ACTIVATIONS: dict[str, Activation] = {"relu2": relu2, "gelu": functional.gelu}


def modulated_norm(x: Tensor, modulation: Modulation, eps: float) -> Tensor:
    """Layer norm whose gain and bias come from a condition.

    Args:
        x: `(batch, tokens, dim)`.
        modulation: gain and bias `(batch, dim)`.
        eps: added to the variance.
    """
    gain, bias = modulation
    if not torch.compiler.is_exporting() and x.shape[0] == 1:
        # one row: the norm's own gain and bias take it in the same kernel; what is exported keeps
        # them apart, since other runtimes take only constants there
        return functional.layer_norm(x, x.shape[-1:], gain.reshape(-1), bias.reshape(-1), eps)
    return functional.layer_norm(x, x.shape[-1:], None, None, eps) * gain[:, None] + bias[:, None]


def partition(x: Tensor, height: int, width: int, window: int) -> Tensor:
    """Reorder tokens from rows to windows.

    Args:
        x: `(batch, height * width, dim)`, row by row.
        height, width: of the map; `window` divides both.
        window: side of a window.

    Returns:
        `(batch, height * width, dim)`, window by window, row by row within each.
    """
    batch, tokens, dim = x.shape
    rows = x.reshape(batch * height // window, window, width // window, window * dim)
    return rows.transpose(1, 2).reshape(batch, tokens, dim)


def unpartition(x: Tensor, height: int, width: int, window: int) -> Tensor:
    """Inverse of `partition`."""
    batch, tokens, dim = x.shape
    rows = x.reshape(batch * height // window, width // window, window, window * dim)
    return rows.transpose(1, 2).reshape(batch, tokens, dim)


def shift(x: Tensor, height: int, width: int, by: int) -> Tensor:
    """Move a map up and left by `by`, what leaves comes in on the other side; negative: back.

    Args:
        x: `(batch, height * width, dim)`, row by row.
        height, width: of the map.
        by: tokens.
    """
    batch, tokens, dim = x.shape
    cut = (by % height) * width
    x = torch.cat([x[:, cut:], x[:, :cut]], dim=1).reshape(batch * height, width, dim)
    cut = by % width
    return torch.cat([x[:, cut:], x[:, :cut]], dim=1).reshape(batch, tokens, dim)


def relative_index(height: int, width: int) -> NDArray[np.int32]:
    """Row of the bias table for every pair of tokens of a map: int32 (tokens * tokens,)."""
    row, column = np.divmod(np.arange(height * width), width)
    down = row[:, None] - row + height - 1
    across = column[:, None] - column + width - 1
    index: NDArray[np.int32] = (down * (2 * width - 1) + across).astype(np.int32)
    return index.ravel()


def shift_mask(height: int, width: int, window: int, by: int) -> NDArray[np.float32]:
    """What keeps tokens apart that only the shift has brought into one window.

    Returns:
        float32 (windows, window², window²), 0 or `MASKED`.
    """
    region = np.zeros((height, width), np.float32)
    for vertical, rows in enumerate((slice(-window), slice(-window, -by), slice(-by, None))):
        for horizontal, columns in enumerate(
            (slice(-window), slice(-window, -by), slice(-by, None))
        ):
            region[rows, columns] = 3 * vertical + horizontal
    tiles = region.reshape(height // window, window, width // window, window)
    windows = tiles.transpose(0, 2, 1, 3).reshape(-1, window * window)
    apart = windows[:, :, None] != windows[:, None]
    return np.where(apart, np.float32(MASKED), np.float32(0.0))


class RelativeAttention(nn.Module):
    """Self-attention with a learnt bias for every relative position (Liu et al. 2021, eq. 4).

    Args:
        dim: width of the tokens.
        head_dim: width of a head.
        height, width: of the window, or of the whole map where attention is global.
        mask: float32 (windows, tokens, tokens) added to the bias; None: nothing.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        height: int,
        width: int,
        mask: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = dim // head_dim
        self.head_dim = head_dim
        self.window_tokens = height * width
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.bias_table = nn.Parameter(
            torch.zeros((2 * height - 1) * (2 * width - 1), self.num_heads)
        )
        # buffers move with the weights; not persistent: no weights of the checkpoint
        self._index: Tensor
        self._mask: Tensor | None
        index = torch.from_numpy(relative_index(height, width))
        self.register_buffer("_index", index, persistent=False)
        folded = None if mask is None else torch.from_numpy(mask)
        self.register_buffer("_mask", folded, persistent=False)

    def bias(self) -> Tensor:
        """Bias and mask, folded: `(windows or 1, num_heads, tokens, tokens)`."""
        table = self.bias_table[self._index].T
        bias = table.reshape(1, self.num_heads, self.window_tokens, self.window_tokens)
        return bias if self._mask is None else bias + self._mask[:, None].to(bias.dtype)

    def forward(self, residual: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Add to `residual` what the tokens of each window find in it.

        Args:
            residual, x: `(batch, tokens, dim)` in window order.
            bias: from `bias`.
        """
        batch, tokens, dim = x.shape
        windows = tokens // self.window_tokens
        # windows become heads of their own, so that one bias serves the whole batch
        heads = windows * self.num_heads
        qkv = self.qkv(x).reshape(batch * windows, self.window_tokens, 3 * dim)
        qkv = split_heads(qkv, 3 * self.num_heads)
        bias = bias.expand(windows, *bias.shape[1:]).reshape(
            heads, self.window_tokens, self.window_tokens
        )
        q, k, v = (
            qkv[:, part * self.num_heads : (part + 1) * self.num_heads].reshape(
                batch, heads, self.window_tokens, self.head_dim
            )
            for part in range(3)
        )
        found = functional.scaled_dot_product_attention(
            q, k, v, scale=self.head_dim**-0.5, attn_mask=bias
        )
        found = found.reshape(batch * windows, self.num_heads, self.window_tokens, self.head_dim)
        return add_linear(residual, self.out, merge_heads(found).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Feed-forward layer."""

    def __init__(self, dim: int, hidden_dim: int, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)
        self._activation = ACTIVATIONS[activation]

    def forward(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return `residual` plus the layer's output for `x` `(batch, tokens, dim)`."""
        return add_linear(residual, self.down, self._activation(self.up(x)))


class SwinBlock(nn.Module):
    """Attention and feed-forward layer, each behind a modulated norm."""

    def __init__(
        self, attention: RelativeAttention, dim: int, mlp_ratio: int, activation: str, eps: float
    ) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = Mlp(dim, mlp_ratio * dim, activation)
        self.norm_eps = eps

    def forward(self, x: Tensor, bias: Tensor, first: Modulation, second: Modulation) -> Tensor:
        """Pass tokens `(batch, tokens, dim)` in window order through the block."""
        x = self.attention(x, modulated_norm(x, first, self.norm_eps), bias)
        return self.mlp(x, modulated_norm(x, second, self.norm_eps))


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, dim: int, out_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """`(batch, height * width, dim)` to `(batch, height * width / 4, out_dim)`."""
        batch, tokens, dim = x.shape
        pairs = x.reshape(batch * height // 2, 2, width // 2, 2 * dim).transpose(1, 2)
        return self.reduction(self.norm(pairs.reshape(batch, tokens // 4, 4 * dim)))
