"""How losses are scaled in fp16, in any framework."""

from __future__ import annotations

FIRST_LOSS_SCALE = 2.0**12
LARGEST_LOSS_SCALE = 2.0**16
# good steps before the loss scale is doubled
SCALE_GROWTH_STEPS = 500
