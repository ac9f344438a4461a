from __future__ import annotations

from pathlib import Path

from kmidi_mlx import checkpoint


def relabel(file: Path, **metadata: object) -> None:
    """Change what a checkpoint says of itself."""
    arrays, known = checkpoint.load_arrays(file)
    checkpoint.save_arrays(file, arrays, {**known, **metadata})
