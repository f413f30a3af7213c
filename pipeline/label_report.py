"""Scores -> the JSON of `<camera>/labels` (docs/wire.md, section 2); nodes/reports.py reads it."""

import json
from collections.abc import Sequence

from pipeline.messages import Scores

_DIGITS = 4


def pack_labels(scores: Scores, names: Sequence[str]) -> bytes:
    """The scores under their classes' names, in the order of the class indexes; ValueError where these do not fit."""
    values = scores.values.tolist()
    labels = [{"name": n, "score": round(v, _DIGITS)} for n, v in zip(names, values, strict=True)]
    identity = {"epoch": scores.id.epoch, "sequence": scores.id.sequence, "captured_ms": scores.captured_ms}
    return json.dumps({**identity, "bundle": scores.bundle.hex(), "labels": labels}).encode()
