"""What encodes the frames of one camera, and what it can be told meanwhile: the level, the threshold, a KEY at once."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipeline.bitstream import MAX_REGIONS
from pipeline.bundle import Bundle
from pipeline.codec import Encoder
from pipeline.deciding import Decider
from pipeline.key_policies import KeyPolicy, trigger_of
from pipeline.messages import Frame, Packet
from pipeline.triggers import Trigger

CLEARLY_SMALLER = 0.75  # of the key's body; a WARP that saves less is not worth its errors


@dataclass(frozen=True, slots=True)
class Tried:
    """What the WARP of one region would have been like, whether it was sent or not.

    Its key is `age` frames old, the flow since `flow_px` pixels long on average; `predicted` is the agreement in
    percent with a fresh mask, None where nothing predicts it.
    """

    age: int
    flow_px: float
    predicted: float | None


class StreamEncoder(ABC):
    """Frames of one camera -> packets of KEYs, and of WARPs as the policy has it; keep it on one thread.

    `decider` is the bundle's own, if it has one.
    """

    def __init__(self, encoder: Encoder, bundle: Bundle, policy: KeyPolicy, decider: Decider | None) -> None:
        self._encoder, self._bundle, self._policy, self._decider = encoder, bundle, policy, decider
        self._quality = encoder.quality
        self._outdated = False  # KEYs are of another level than those to come
        self.tried: tuple[Tried, ...] = ()  # of the last frame, where keys were not due anyway

    @abstractmethod
    def packets(self, frame: Frame) -> tuple[Packet, ...]:
        """One frame -> the packets that can leave now, in the order of their frames; ValueError on another size."""

    @abstractmethod
    def flush(self) -> tuple[Packet, ...]:
        """The packets of the frames that wait for others, without those."""

    @abstractmethod
    def request_key(self, regions: Iterable[int] = range(MAX_REGIONS)) -> None:
        """Make these regions of the next packet KEY, or all; those that frames do not have are passed over."""

    @property
    @abstractmethod
    def key_asked(self) -> bool:
        """Whether a key was asked for that no packet has brought yet."""

    @property
    def quality(self) -> int:
        """The quality level of the frames to come, and where a price is set the highest; a new one gives a KEY."""
        return self._quality

    @quality.setter
    def quality(self, quality: int) -> None:
        if quality != self._quality or self._outdated:
            self._quality = self._encoder.quality = quality
            self._outdated = False
            self.request_key()  # a trigger may have gone down to that very level, and weighs levels it no longer has

    @property
    def threshold(self) -> float:
        """The least agreement, in percent of the pixels, that a WARP has to promise; a new one holds at once.

        ConfigError where a price decides, or on a value out of range.
        """
        return self._policy.least_agreement

    @threshold.setter
    def threshold(self, agreement: float) -> None:
        if agreement != self._policy.least_agreement:
            self._policy = replace(self._policy, least_agreement=agreement)
            self._renew_triggers()

    def code_keys_at(self, quality: int) -> None:
        """Change the level of the KEYs to come, and ask for none: the next one is due when it was.

        A packet has KEYs of one level only, so that a grid of several regions sends all of them at once; and a price
        weighs each level against that of the key, so that there one is sent at once too.
        """
        if self._regions > 1 or self._policy.price is not None:
            self.quality = quality
        elif quality != self._quality:
            self._quality, self._outdated = quality, True

    @property
    @abstractmethod
    def _regions(self) -> int:
        """How many of them a frame has."""

    @abstractmethod
    def _renew_triggers(self) -> None:
        """Go on with triggers of the policy as it is now."""

    def _new_trigger(self) -> Trigger:
        return trigger_of(self._policy, self._bundle, self._decider, regions=self._regions)

    def _catch_up(self) -> None:
        """Before a KEY: code it at the level that was asked for, where that was to come with the next one."""
        if self._outdated:
            self._encoder.quality, self._outdated = self._quality, False
