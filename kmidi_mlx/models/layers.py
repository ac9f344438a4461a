"""Layers that the networks share: rotary self-attention, cross-attention, SwiGLU, residual adds."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray


def add_linear(residual: mx.array, linear: nn.Module, x: mx.array) -> mx.array:
    """Return `residual + linear(x)`, in one kernel for a plain bias-free layer."""
    if type(linear) is nn.Linear:
        return mx.addmm(residual, x, linear.weight.T)
    return residual + linear(x)


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """SiLU(gate) * up (Shazeer 2020, arXiv 2002.05202), fused into one kernel."""
    return gate * mx.sigmoid(gate) * up


def split_heads(x: mx.array, num_heads: int) -> mx.array:
    """Reshape `(batch, time, num_heads * head_dim)` to `(batch, num_heads, time, head_dim)`."""
    batch, time, width = x.shape
    return x.reshape(batch, time, num_heads, width // num_heads).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """Inverse of `split_heads`."""
    batch, num_heads, time, head_dim = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, time, num_heads * head_dim)


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
        self._rope_periods = mx.array(rope_periods)  # no parameter, so fp32 in any model
        self.qkv = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.out = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.sinks = mx.zeros((num_heads,))

    def project(self, x: mx.array, offset: int | mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Rotated queries, rotated keys, values `(batch, num_heads, time, head_dim)` of `x`."""
        qkv = split_heads(self.qkv(x), 3 * self.num_heads)
        # one product makes q, k, v and one kernel rotates q and k
        qk = mx.fast.rope(
            qkv[:, : 2 * self.num_heads],
            self.head_dim,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self._rope_periods,
        )
        return qk[:, : self.num_heads], qk[:, self.num_heads :], qkv[:, 2 * self.num_heads :]

    def attend(
        self,
        residual: mx.array,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array | str,
    ) -> mx.array:
        """Add to `residual` what the queries find; `mask` is "causal" or boolean, True = seen."""
        found = mx.fast.scaled_dot_product_attention(
            queries,
            keys,
            values,
            scale=self.head_dim**-0.5,
            mask=mask,
            sinks=self.sinks.astype(queries.dtype),
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

    def keys_values(self, context: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values `(batch, num_heads, slots, head_dim)` of a context."""
        kv = split_heads(self.kv(context), 2 * self.num_heads)
        return kv[:, : self.num_heads], kv[:, self.num_heads :]

    def attend(
        self,
        residual: mx.array,
        x: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array | None,
    ) -> mx.array:
        """Add to `residual` what `x` finds in the context."""
        found = mx.fast.scaled_dot_product_attention(
            split_heads(self.query(x), self.num_heads),
            keys,
            values,
            scale=self.head_dim**-0.5,
            mask=mask,
        )
        return add_linear(residual, self.out, merge_heads(found))


class FeedForward(nn.Module):
    """SwiGLU feed-forward layer with the gate and up products fused."""

    def __init__(self, hidden_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_dim, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, hidden_dim, bias=False)

    def __call__(self, residual: mx.array, x: mx.array) -> mx.array:
        """Return `residual` plus the layer's output for `x` `(batch, time, hidden_dim)`."""
        gate, up = mx.split(self.gate_up(x), 2, axis=-1)
        return add_linear(residual, self.down, swiglu(gate, up))
