"""Encodings of coordinates and the networks behind them.

An encoding is an `nn.Module` with `in_dim` and `out_dim` that turns points [N, in_dim] in [0, 1] into float32 features
[N, out_dim]. Nothing is imported here: `hash_grid`, `grid`, `fourier` and `mlp` are loaded by whoever builds a model,
and tiny-cuda-nn only when a grid runs on a GPU (`tcnn`).
"""
