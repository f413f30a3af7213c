"""Which pictures of a source, or of a camera for people, are taken, where fewer are wanted than there are."""

_EARLY, _EARLY_S = 0.1, 0.02  # of the time to the next picture, and at most: so much sooner one may come and be taken
_LATE_S = 0.5  # what is late by so much is made up for: over a network pictures come in bursts
_GAP_S = 1.0  # what is later still begins anew


class Thinning:
    """Takes as many pictures a second as are wanted, as evenly as the source allows."""

    def __init__(self) -> None:
        self._due_s: float | None = None  # when the last one that was taken was due

    def takes(self, time_s: float, max_fps: float | None) -> bool:
        """Whether the picture of this time is among `max_fps` a second, None: all; times may begin again."""
        if max_fps is None or self._due_s is None:
            self._due_s = time_s
            return True
        step_s = 1 / max_fps
        due_s = self._due_s + step_s
        if not -2 * step_s <= time_s - due_s <= step_s + _GAP_S:
            due_s = time_s
        due_s = max(due_s, time_s - max(step_s, _LATE_S))
        if time_s < due_s - min(_EARLY * step_s, _EARLY_S):
            return False
        self._due_s = due_s
        return True
