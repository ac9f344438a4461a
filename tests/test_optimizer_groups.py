from __future__ import annotations

import pytest

from kmidi_mlx.optimizer_groups import GROUPS, decays, group_of


def test_matrices_decay_but_embeddings_and_vectors_do_not() -> None:
    assert decays("blocks.0.attention.qkv.weight", 2)
    assert not decays("chord_embedding.weight", 2)
    assert not decays("final_norm.weight", 1)


@pytest.mark.parametrize(
    ("name", "dimensions", "adamw", "muon"),
    [
        ("blocks.0.attention.qkv.weight", 2, 0, 0),
        ("patches.weight", 4, 0, 1),  # no matrix, but it decays
        ("chord_embedding.weight", 2, 1, 2),
        ("final_norm.weight", 1, 1, 2),
    ],
)
def test_the_group_of_a_weight(name: str, dimensions: int, adamw: int, muon: int) -> None:
    assert group_of("adamw", name, dimensions) == adamw < len(GROUPS["adamw"])
    assert group_of("muon", name, dimensions) == muon < len(GROUPS["muon"])
