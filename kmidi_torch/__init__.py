"""The networks of `kmidi_mlx.models` once more, in PyTorch: same names, same weights, same results.

Only networks are here. Configuration, music, data and everything else is `kmidi_mlx`'s own, whose
lower floors need no framework.
"""
