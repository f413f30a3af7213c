"""The networks: torch only; they know nothing of bytes, files or networks of computers."""

from collections.abc import Callable

from pipeline.models.split_segmenter import SplitSegmenter

MODELS: dict[str, Callable[..., SplitSegmenter]] = {"joint_mobilenet_v2": SplitSegmenter}
