"""When a KEY is due, as commands and settings ask for it: at intervals, by a threshold, at a price, in every frame.

settings -> KeyPolicy -> Trigger, one for each region of a camera
"""

from dataclasses import dataclass

from pipeline.bitstream import MAX_AGE
from pipeline.bundle import Bundle
from pipeline.deciding import GRAPH, Decider, Predictor, linear_agreement, usual_bytes
from pipeline.errors import ConfigError
from pipeline.triggers import FALL, MAX_PRICE, RISE, Always, Bargain, Threshold, Trigger

LONGEST_AGE = 30  # frames, of a key where a trigger decides: so long at most lasts what a lost KEY spoils
_ONE_OF_TWO = "a threshold and a price are two ways to decide on a KEY; give only one of the two"


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """When a region has to be a KEY: its key would be older than `longest_age` frames (0: each frame is a KEY), or the
    trigger says so. That is a threshold on the predicted agreement, `least_agreement`, 0 to 100, which KEYs lower and
    WARPs raise if it is `moving`; or, with a `price`, in percent of the pixels for 1000 bytes, the best bargain, which
    also chooses the level of each KEY, up to the one that is asked for. `predict` stands in for the bundle's own
    prediction in a threshold. Raises ConfigError on values out of range.
    """

    longest_age: int = 0
    least_agreement: float = 0.0
    price: float | None = None
    predict: Predictor | None = None
    moving: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.longest_age <= MAX_AGE:
            raise ConfigError(f"longest key age {self.longest_age}: must be 0 to {MAX_AGE} frames")
        if not 0 <= self.least_agreement <= 100:  # not a number is out of range too
            raise ConfigError(f"threshold {self.least_agreement}: must be 0 to 100 percent of the pixels")
        if self.price is not None and not 0 < self.price <= MAX_PRICE:
            raise ConfigError(f"price {self.price}: must be above 0, and {MAX_PRICE:g} at most")
        if self.price is not None and not self.longest_age:
            raise ConfigError(f"price {self.price:g}: every frame is a KEY; give a key interval above 1")
        if self.price is not None and self.least_agreement:
            raise ConfigError(_ONE_OF_TWO)


EVERY_FRAME = KeyPolicy()


def at_interval(frames: int) -> KeyPolicy:
    """One KEY in so many frames, whatever they show; ConfigError where it is not 1 to 256."""
    if not 1 <= frames <= MAX_AGE + 1:
        raise ConfigError(f"key interval {frames}: must be 1 to {MAX_AGE + 1} frames")
    return KeyPolicy(longest_age=frames - 1)


def at_threshold(
    agreement: float, *, longest_age: int = LONGEST_AGE, predict: Predictor | None = None, moving: bool = False
) -> KeyPolicy:
    """A KEY where less agreement than this, in percent of the pixels, is predicted; ConfigError as KeyPolicy."""
    return KeyPolicy(longest_age, agreement, predict=predict, moving=moving)


def at_price(price: float, *, longest_age: int = LONGEST_AGE) -> KeyPolicy:
    """A KEY where it is the better bargain, and of the level that is; ConfigError as KeyPolicy."""
    return KeyPolicy(longest_age, price=price)


def key_policy(
    *, key_interval: int | None = None, threshold: float | None = None, price: float | None = None
) -> KeyPolicy:
    """What commands and settings ask for: one KEY in so many frames at least, and sooner where the trigger says so.

    With none of them each frame is a KEY; ConfigError as the policies' own.
    """
    if threshold is not None and price is not None:
        raise ConfigError(_ONE_OF_TWO)
    if threshold is None and price is None:
        return EVERY_FRAME if key_interval is None else at_interval(key_interval)
    longest_age = LONGEST_AGE if key_interval is None else at_interval(key_interval).longest_age
    return KeyPolicy(longest_age, threshold or 0.0, price)


def trigger_of(policy: KeyPolicy, bundle: Bundle, decider: Decider | None, *, regions: int = 1) -> Trigger:
    """That of one of so many regions; ConfigError where the policy needs a graph that the bundle does not have."""
    if policy.price is None:
        predict = policy.predict or decider or linear_agreement
        if not policy.least_agreement:
            return Always()
        fall, rise = (FALL, RISE) if policy.moving else (0.0, 0.0)
        return Threshold(predict, policy.least_agreement, fall=fall, rise=rise)
    if decider is None:
        raise ConfigError(
            f"price {policy.price:g}: bundle {bundle.manifest.name} has no graph {GRAPH} to decide by; "
            "add one with maskcast train-decide, or use a threshold"
        )
    levels = [usual_bytes(bundle.manifest, level) for level in range(bundle.tables.levels)]
    # All KEYs of a packet are of one level, so that where there are several regions none of them chooses it.
    cheapest = 0 if regions == 1 else len(levels)
    return Bargain(decider.compare, levels, price=policy.price, cheapest=cheapest)
