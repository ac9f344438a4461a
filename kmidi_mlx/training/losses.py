"""Losses in MLX."""

from __future__ import annotations

import mlx.core as mx


def cross_entropy_sum(
    logits: mx.array, targets: mx.array, weights: mx.array, label_smoothing: float = 0.0
) -> mx.array:
    """Weighted sum of the cross-entropy in nats.

    Args:
        logits: `(batch, time, classes)`, any float type; the loss is computed in fp32.
        targets: `(batch, time)` class ids.
        weights: `(batch, time)`, 0 for positions that do not count.
        label_smoothing: share of the probability spread evenly over all classes
            (Szegedy et al. 2016, section 7).
    """
    logits = logits.astype(mx.float32)
    normaliser = mx.logsumexp(logits, axis=-1)
    target_logits = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if label_smoothing > 0:
        mean_logits = mx.mean(logits, axis=-1)
        target_logits = (1 - label_smoothing) * target_logits + label_smoothing * mean_logits
    return mx.sum((normaliser - target_logits) * weights)
