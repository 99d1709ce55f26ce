"""The size at which a training computes optical flow."""

from __future__ import annotations

from neural_fields.planar.config import PlanarConfig

# A training that is so many times smaller than the flow that its geometry asks for has the flow of larger frames:
# points on a face that turns stay on it better (0.707 -> 0.723 at 320x240). Geometry takes as many times longer.
MIN_FLOW_GAIN = 1.25


def choose_flow_size(
    size: tuple[int, int], source_size: tuple[int, int], config: PlanarConfig, may_grow: bool = True
) -> tuple[int, int]:
    """Chooses the size of the flow.

    Args:
        size: (width, height) of the training.
        source_size: (width, height) of the source.
        config: of the model.
        may_grow: whether it may be larger than the training, which takes time: not with a time limit, nor where a
            region of the video is tracked with it.

    Returns:
        (width, height): that of the training where losses need it, otherwise what geometry asks for.
    """
    if config.mapping.flow_side is None:
        return size
    scale = min(1.0, config.mapping.flow_side / max(size))
    wanted = min(config.mapping.flow_side, max(source_size)) / max(size)
    if wanted >= MIN_FLOW_GAIN and may_grow and not config.terms.uses_flow:
        scale = wanted
    return round(size[0] * scale), round(size[1] * scale)
