"""The flags by which every command is told an emotion."""

from __future__ import annotations

import argparse

from kmidi_mlx.emotion import Emotion, from_label
from kmidi_mlx.errors import KmidiError

__all__ = ["add_emotion_arguments", "emotion_from"]


def add_emotion_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--emotion`, `--valence`, `--arousal` and `--intensity`, for `emotion_from`."""
    parser.add_argument("--emotion", metavar="LABEL", help="happy, sad, angry, calm, ...")
    parser.add_argument("--valence", type=float, help="-1 (unpleasant) to 1 (pleasant)")
    parser.add_argument("--arousal", type=float, help="-1 (quiet) to 1 (excited)")
    parser.add_argument("--intensity", type=float, help="0 to 1 (default: distance from neutral)")


def emotion_from(args: argparse.Namespace) -> Emotion | None:
    """Return the emotion that the flags of `add_emotion_arguments` ask for; None: they are not set.

    Raises:
        KmidiError: for a label beside numbers, one number without its partner, an unknown label or
            a number out of range.
    """
    numbers = (args.valence, args.arousal)
    if args.emotion is not None:
        if any(number is not None for number in (*numbers, args.intensity)):
            raise KmidiError("give either --emotion or --valence and --arousal, not both.")
        return from_label(args.emotion)
    if numbers == (None, None):
        if args.intensity is not None:
            raise KmidiError("--intensity needs --valence and --arousal.")
        return None
    if None in numbers:
        raise KmidiError("--valence and --arousal go together; give both.")
    return Emotion.of(args.valence, args.arousal, args.intensity)
