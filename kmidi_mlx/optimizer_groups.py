"""Which weights an optimiser moves by which rule, in any framework.

An optimiser is a few *groups* of weights, each moved by a rule of its own. AdamW has two: what
decays and what does not. With Muon (K. Jordan 2024, "Muon: an optimizer for hidden layers in neural
networks") matrices are a group before them. Muon's steps are as large as AdamW's usually are (Liu
et al. 2025, arXiv 2502.16982), so that one learning rate serves all groups.
"""

from __future__ import annotations

import math

#: What each group of an optimiser remembers of a weight, by the optimiser's name.
GROUPS = {"adamw": (("m", "v"), ("m", "v")), "muon": (("v",), ("m", "v"), ("m", "v"))}


def decays(name: str, dimensions: int) -> bool:
    """Whether a weight decays: matrices do; norms, biases, sinks and embeddings do not.

    Args:
        name: of the parameter, with dots.
        dimensions: number of axes of its array.
    """
    return dimensions >= 2 and "embedding" not in name


def group_of(optimizer: str, name: str, dimensions: int) -> int:
    """Which group of `GROUPS` a weight is in.

    Args:
        optimizer: adamw or muon.
        name, dimensions: as of `decays`.
    """
    if not decays(name, dimensions):
        return len(GROUPS[optimizer]) - 1
    return int(optimizer == "muon" and dimensions != 2)


def muon_step_size(rows: int, columns: int) -> float:
    """What a step of orthogonal rows or columns is multiplied by to be as large as AdamW's.

    Its root mean square is then 0.2 (Liu et al. 2025, arXiv 2502.16982, section 2.2).
    """
    return 0.2 * math.sqrt(max(rows, columns))
