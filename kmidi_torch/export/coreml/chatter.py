"""What the tools say of themselves while they work, kept from the person who waits."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

# said by PyTorch of itself, in every tracing
_OF_TORCH = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
# coremltools leaves folders to be removed when nobody looks at them any more
_OF_FOLDERS = "Implicitly cleaning up <TemporaryDirectory"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, version hints and missing Mac libraries of coremltools to itself."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.filterwarnings("ignore", module=r"coremltools\.")
        warnings.filterwarnings("ignore", _OF_TORCH, FutureWarning)
        warnings.filterwarnings("ignore", _OF_FOLDERS, ResourceWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
