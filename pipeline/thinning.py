"""Which pictures of a source are taken, where fewer are wanted than it has."""

_EARLY, _EARLY_S = 0.1, 0.02  # of the time to the next picture, and at most: so much sooner one may come and be taken


class Thinning:
    """Takes as many pictures a second as are wanted, as evenly as the source allows."""

    def __init__(self) -> None:
        self._taken_s: float | None = None  # when the last one that was taken was due

    def takes(self, time_s: float, max_fps: float | None) -> bool:
        """Whether the picture of this time is among `max_fps` a second, None: all; times may begin again."""
        step_s = 0.0 if max_fps is None else 1 / max_fps
        due_s = time_s if self._taken_s is None else self._taken_s + step_s
        if abs(time_s - due_s) > 2 * step_s:
            due_s = time_s
        if time_s < due_s - min(_EARLY * step_s, _EARLY_S):
            return False
        # What is late by less than a step is so by the source's own: those after it make up for that.
        self._taken_s = due_s if time_s < due_s + step_s else time_s
        return True
