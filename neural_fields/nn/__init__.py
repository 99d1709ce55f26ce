"""Encodings of coordinates and the networks behind them.

An encoding is an `nn.Module` with `in_dim` and `out_dim` that turns points [N, in_dim] in [0, 1] into float32 features
[N, out_dim]. This package imports nothing: the code that builds a model imports `hash_grid`, `grid`, `fourier` and
`mlp`, and tiny-cuda-nn is imported only when a grid runs on a GPU (`tcnn`).
"""
