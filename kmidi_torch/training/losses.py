"""Losses in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_sum(
    logits: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Weighted sum of the cross-entropy in nats.

    Args:
        logits: `(batch, time, classes)`, any float type; the loss is computed in fp32.
        targets: `(batch, time)` class ids.
        weights: `(batch, time)`, 0 for positions that do not count.
        label_smoothing: share of the probability spread evenly over all classes
            (Szegedy et al. 2016, section 7).
    """
    logits = logits.float()
    normaliser = torch.logsumexp(logits, dim=-1)
    target_logits = torch.gather(logits, -1, targets[..., None].long())[..., 0]
    if label_smoothing > 0:
        mean_logits = torch.mean(logits, dim=-1)
        target_logits = (1 - label_smoothing) * target_logits + label_smoothing * mean_logits
    return torch.sum((normaliser - target_logits) * weights)
