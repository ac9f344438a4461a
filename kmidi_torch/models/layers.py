"""Layers that the networks share: rotary self-attention, cross-attention, SwiGLU, residual adds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.utils.checkpoint
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


def add_linear(residual: Tensor, linear: nn.Module, x: Tensor) -> Tensor:
    """Return `residual + linear(x)`."""
    return residual + linear(x)


def checkpoint(block: nn.Module) -> Callable[..., Tensor]:
    """Return `block` with its activations recomputed for gradients, as MLX's of this name."""
    return partial(torch.utils.checkpoint.checkpoint, block, use_reentrant=False)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) * up (Shazeer 2020, arXiv 2002.05202)."""
    return functional.silu(gate) * up


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape `(batch, time, num_heads * head_dim)` to `(batch, num_heads, time, head_dim)`."""
    batch, time, width = x.shape
    return x.reshape(batch, time, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Inverse of `split_heads`."""
    batch, num_heads, time, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, time, num_heads * head_dim)


def rope(x: Tensor, periods: Tensor, offset: int | Tensor) -> Tensor:
    """Rotate `(..., time, head_dim)` by position, number i with number i + head_dim / 2.

    What `mx.fast.rope(traditional=False, freqs=periods)` does; angles and products are fp32.

    Args:
        x: queries or keys.
        periods: `(head_dim / 2,)` positions in which each pair turns by one radian.
        offset: position of the first in time, a number or `(1,)`.
    """
    time, half = x.shape[-2], x.shape[-1] // 2
    position = offset + torch.arange(time, device=x.device)
    angle = position[:, None] * torch.reciprocal(periods.float())
    cos, sin = torch.cos(angle), torch.sin(angle)
    first, second = x[..., :half].float(), x[..., half:].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def scaled_dot_product_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | str, sinks: Tensor
) -> Tensor:
    """Attention with one more logit a head in the softmax, as MLX's of this name with `sinks`.

    Args:
        queries, keys, values: `(batch, num_heads, time, head_dim)`.
        scale: of the products.
        mask: "causal" or boolean, broadcast to `(batch, num_heads, queries, keys)`, True = seen.
        sinks: `(num_heads,)` logits.
    """
    if isinstance(mask, str):
        # PyTorch's fused kernels know no sinks, and a bias with a gradient makes them slow: so a
        # key goes in front whose product with the one that ends every query is the sink, and whose
        # value is zero; the query in front of all keeps the mask causal and is thrown away
        batch, num_heads, _, head_dim = keys.shape
        sink = functional.pad((sinks / scale).reshape(1, num_heads, 1, 1), (head_dim, 0))
        sink = sink.expand(batch, num_heads, 1, head_dim + 1)
        found = functional.scaled_dot_product_attention(
            functional.pad(queries, (0, 1, 1, 0), value=1.0),
            torch.cat([sink, functional.pad(keys, (0, 1))], dim=2),
            functional.pad(values, (0, 1, 1, 0)),
            is_causal=True,
            scale=scale,
        )
        return found[:, :, 1:, :head_dim]
    # few queries on many keys: a key more would copy the whole ring, a logit more costs nothing
    logits = (scale * queries) @ keys.transpose(-1, -2)
    logits = logits.masked_fill(~mask, float("-inf"))
    sink = sinks[:, None, None].expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat([logits, sink], dim=-1), dim=-1)[..., :-1] @ values


class SelfAttention(nn.Module):
    """Causal self-attention with rotary positions (Su et al. 2021) and a learnt sink per head.

    The sink is one more logit in each head's softmax: a head that finds nothing to attend to needs
    no first event to lean on, so the oldest event can leave the ring without harm
    (Xiao et al. 2023, arXiv 2309.17453, describe the harm).
    """

    def __init__(self, hidden_dim: int, num_heads: int, rope_periods: NDArray[np.float32]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_dim // num_heads
        # a buffer moves with the weights; not persistent: no weight of the checkpoint
        self._rope_periods: Tensor
        self.register_buffer("_rope_periods", torch.tensor(rope_periods), persistent=False)
        self.qkv = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.out = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.sinks = nn.Parameter(torch.zeros(num_heads))

    def project(self, x: Tensor, offset: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, values `(batch, num_heads, time, head_dim)` of `x`."""
        qkv = split_heads(self.qkv(x), 3 * self.num_heads)
        # one product makes q, k, v and one kernel rotates q and k
        qk = rope(qkv[:, : 2 * self.num_heads], self._rope_periods, offset)
        return qk[:, : self.num_heads], qk[:, self.num_heads :], qkv[:, 2 * self.num_heads :]

    def attend(
        self,
        residual: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | str,
    ) -> Tensor:
        """Add to `residual` what the queries find; `mask` is "causal" or boolean, True = seen."""
        found = scaled_dot_product_attention(
            queries,
            keys,
            values,
            scale=self.head_dim**-0.5,
            mask=mask,
            sinks=self.sinks.to(queries.dtype),
        )
        return add_linear(residual, self.out, merge_heads(found))


class CrossAttention(nn.Module):
    """Attention to the emotion context; its keys and values are made once per emotion."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_dim // num_heads
        self.query = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.kv = nn.Linear(hidden_dim, 2 * hidden_dim, bias=False)
        self.out = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(batch, num_heads, slots, head_dim)` of a context."""
        kv = split_heads(self.kv(context), 2 * self.num_heads)
        return kv[:, : self.num_heads], kv[:, self.num_heads :]

    def attend(
        self,
        residual: Tensor,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Add to `residual` what `x` finds in the context."""
        found = functional.scaled_dot_product_attention(
            split_heads(self.query(x), self.num_heads),
            keys,
            values,
            scale=self.head_dim**-0.5,
            attn_mask=mask,
        )
        return add_linear(residual, self.out, merge_heads(found))


class FeedForward(nn.Module):
    """SwiGLU feed-forward layer with the gate and up products fused."""

    def __init__(self, hidden_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_dim, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, hidden_dim, bias=False)

    def forward(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return `residual` plus the layer's output for `x` `(batch, time, hidden_dim)`."""
        gate, up = torch.chunk(self.gate_up(x), 2, dim=-1)
        return add_linear(residual, self.down, swiglu(gate, up))
