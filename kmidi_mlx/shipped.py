"""The trained weights that come with the package, for whoever has none of their own.

Every command begins at `checkpoints/MODEL`, where training leaves a model. As long as nothing is
there, the weights of the package take its place.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["USUAL_FOLDER", "in_force", "usual_checkpoint"]

#: Where training leaves its models, from the folder that one works in.
USUAL_FOLDER = Path("checkpoints")
_SHIPPED = Path(__file__).parent / "assets" / "models"


def usual_checkpoint(model: str) -> Path:
    """Return the checkpoint folder of a model that nobody names."""
    return USUAL_FOLDER / model


def in_force(path: Path) -> Path:
    """Return the checkpoint that a path stands for.

    Args:
        path: of a checkpoint folder or file. `checkpoints/MODEL` stands for the weights of the
            package while nothing is in there; every other path stands for itself.
    """
    if path.parent != USUAL_FOLDER or _holds_anything(path):
        return path
    shipped = _SHIPPED / path.name
    return shipped if shipped.is_dir() else path


def _holds_anything(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()
