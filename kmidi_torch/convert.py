"""`python -m kmidi_torch.convert`: a checkpoint from MLX to PyTorch, or back, without MLX."""

from __future__ import annotations

import sys

from kmidi_mlx.command import run
from kmidi_mlx.config import RunConfig
from kmidi_mlx.convert import convert_with, find_network


def main(argv: list[str]) -> int:
    """Parse the flags, convert, print what was written; PyTorch tells what a network holds."""
    return convert_with(argv, _expected, None)


def _expected(config: RunConfig) -> dict[str, tuple[int, ...]]:
    network = find_network("kmidi_torch", config)
    # imported late, so that --help answers at once and a missing PyTorch is told in one line
    from kmidi_torch.parameter_shapes import parameter_shapes

    return parameter_shapes(lambda: network(config.model))


if __name__ == "__main__":
    sys.exit(run(main))
