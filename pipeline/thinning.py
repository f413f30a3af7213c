"""Which pictures of a source, or of a camera for people, are taken, where fewer are wanted than there are.

Over a network pictures come early and late. So that as many are taken all the same, what is late is made up for, by
what a fifth of a second holds or by one picture: so many more are taken within a second at most.
"""

_EARLY, _EARLY_S = 0.1, 0.02  # of the time to the next picture, and at most: so much sooner one may come and be taken
_LATE_S, _MOST_LATE_S = 0.2, 0.5  # so much is made up for, or the time to the next picture, which may be long


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
        early_s = min(_EARLY * step_s, _EARLY_S)
        late_s = min(max(step_s - early_s, _LATE_S), _MOST_LATE_S)
        due_s = max(self._due_s + step_s, time_s - late_s)
        if time_s < due_s - 2 * step_s:
            due_s = time_s
        if time_s < due_s - early_s:
            return False
        self._due_s = due_s
        return True
