"""A reference interpreter of Core ML's ML Programs: what a written package computes, in numpy."""

from kmidi_torch.export.mil.program import Program

__all__ = ["Program"]
