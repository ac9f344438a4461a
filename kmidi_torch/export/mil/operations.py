"""All operations that are evaluated, by the name that ML Programs give them."""

from __future__ import annotations

from kmidi_torch.export.mil import (
    operations_constexpr,
    operations_elementwise,
    operations_product,
    operations_tensor,
)
from kmidi_torch.export.mil.arguments import Operation

__all__ = ["MOVES", "OPERATIONS"]

OPERATIONS: dict[str, Operation] = {
    **operations_constexpr.OPERATIONS,
    **operations_elementwise.OPERATIONS,
    **operations_product.OPERATIONS,
    **operations_tensor.OPERATIONS,
}
#: Those whose results hold no number that was not there before, so that nothing is rounded.
MOVES = frozenset(operations_tensor.OPERATIONS)
