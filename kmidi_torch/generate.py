"""`python -m kmidi_torch.generate`: `kmidi generate` where PyTorch is installed and MLX is not."""

from __future__ import annotations

import sys

from kmidi_mlx.command import run
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generate import Engine, command_parser, compose


def main(argv: list[str]) -> int:
    """Parse the flags of `kmidi generate` and `--device`, write the piece, say what was written."""
    parser = command_parser("python -m kmidi_torch.generate")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "mps"),
        default="cpu",
        help="where the model runs (default: cpu)",
    )
    args = parser.parse_args(argv)
    return compose(args, lambda: _torch(args.device))


def _torch(device: str) -> Engine:
    try:
        import torch
    except ImportError as error:
        raise KmidiError("PyTorch is missing: pip install 'kmidi-mlx[torch]'.") from error

    from kmidi_torch.generation.generator import generate
    from kmidi_torch.loading import load_generator
    from kmidi_torch.models.adapters import adapt

    usable = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not usable[device]:
        raise KmidiError(f"--device {device}: this PyTorch finds none here; try --device cpu.")
    return Engine(lambda path: load_generator(path, device=device), adapt, generate)


if __name__ == "__main__":
    sys.exit(run(main))
