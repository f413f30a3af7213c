"""Which pictures of a source are taken, where fewer are wanted than it has."""

_EARLY, _EARLY_S = 0.1, 0.02  # of the time to the next picture, and at most: so much sooner one may come and be taken


class Thinning:
    """At most so many pictures a second, as evenly as the source allows; None for all that come."""

    def __init__(self, max_fps: float | None) -> None:
        self._step_s = 0.0 if max_fps is None else 1 / max_fps
        self._early_s = min(_EARLY * self._step_s, _EARLY_S)
        self._due_s: float | None = None

    def takes(self, time_s: float) -> bool:
        """Whether the picture of this time is one of them; times may begin again."""
        begins = self._due_s is None or abs(time_s - self._due_s) > 2 * self._step_s
        if self._due_s is None or begins:
            self._due_s = time_s
        if time_s < self._due_s - self._early_s:
            return False
        # What is late by less than a step is so by the source's own: those after it make up for that.
        self._due_s = (self._due_s if time_s < self._due_s + self._step_s else time_s) + self._step_s
        return True
