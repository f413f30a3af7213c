"""What `temporal` measures of a policy, and its tables: a row a policy, and the least loss where the targets lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.targets import TARGETS, least_at
from pipeline.key_policies import EVERY_FRAME, KeyPolicy, at_interval, at_price, at_threshold
from pipeline.messages import Kind

EVERY, INTERVAL, THRESHOLD, MOVING, PRICE = "every frame", "interval", "threshold", "moving threshold", "price"
FAMILIES = (INTERVAL, THRESHOLD, MOVING, PRICE)
KINDS = (Kind.KEY, Kind.WARP)


@dataclass(frozen=True, slots=True)
class Setting:
    """One policy: its family, the value that it was given, the level of its KEYs, of a price the highest."""

    family: str
    value: float
    level: int
    lookahead: int = 0  # frames that wait for the next KEY

    def __str__(self) -> str:
        waiting = f", lookahead {self.lookahead}" if self.lookahead else ""
        return self.family if self.family == EVERY else f"{self.family} {self.value:g}{waiting}"

    @property
    def policy(self) -> KeyPolicy:
        match self.family:
            case "interval":
                return at_interval(int(self.value))
            case "threshold":
                return at_threshold(self.value)
            case "moving threshold":
                return at_threshold(self.value, moving=True)
            case "price":
                return at_price(self.value)
        return EVERY_FRAME


@dataclass(frozen=True, slots=True)
class OfKind:
    """What the frames of one kind were: their share, mean bytes, median ms; no ms where frames wait for others."""

    share: float
    size_bytes: float
    camera_ms: float | None
    worker_ms: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """One policy: percent, bytes of packets, mean ms a frame, and each kind; `miou` is None without labels.

    `changed` is the share of pixels whose class is another one than in the frame before; None of a single frame.
    """

    setting: Setting
    miou: float | None
    agreement: float
    changed: float | None
    loss: float
    total_bytes: int
    share: float
    camera_ms: float
    worker_ms: float
    kinds: dict[str, OfKind]


def loss_at(results: Sequence[Result], family: str, level: int, share: float, lookahead: int = 0) -> float | None:
    """The least loss of a family of policies, with KEYs of a level, for at most this share of the bits.

    A KEY in every frame is of every family.
    """
    of_level = [one for one in results if one.setting.level == level]
    members = [
        one for one in of_level if (one.setting.family, one.setting.lookahead) in ((family, lookahead), (EVERY, 0))
    ]
    return least_at(((one.share, one.loss) for one in members), share)


def table_of(results: Sequence[Result], title: str) -> Table:
    columns = ("policy", "level", "mIoU", "agreement", "loss", "changed", "bits", "KEY / WARP")
    table = Table(*columns, "bytes", "camera ms", "worker ms", "both, a frame", title=title, title_justify="left")
    for one in results:
        found = [one.kinds.get(kind.name) for kind in KINDS]
        table.add_row(
            str(one.setting), str(one.setting.level), shown(one.miou, 2), shown(one.agreement, 2),
            shown(one.loss, 2), shown(one.changed, 2), f"{100 * one.share:.1f} %",
            " / ".join("-" if of is None else f"{100 * of.share:.0f} %" for of in found),
            " / ".join("-" if of is None else f"{of.size_bytes:.0f}" for of in found),
            " / ".join("-" if of is None else shown(of.camera_ms, 1) for of in found),
            " / ".join("-" if of is None else shown(of.worker_ms, 1) for of in found),
            f"{one.camera_ms:.1f} + {one.worker_ms:.1f}",
        )  # fmt: skip
    return table


def targets_of(results: Sequence[Result]) -> Table:
    """What each family loses at least where the targets lie, found with hindsight; and with KEYs of which level."""
    levels = list(dict.fromkeys(one.setting.level for one in results))
    there = {(one.setting.family, one.setting.lookahead) for one in results if one.setting.family != EVERY}
    families = sorted(there, key=lambda one: (one[1], FAMILIES.index(one[0])))
    names = [f"{family}, lookahead {ahead}" if ahead else family for family, ahead in families]
    table = Table("bits, at most", "loss, at most", *names, title="least loss (level of KEYs)", title_justify="left")
    for share, limit in TARGETS:
        cells = []
        for family, ahead in families:
            # A price chooses levels itself, up to the one that all is held against.
            tried = levels[:1] if family == PRICE else levels
            found = [(loss_at(results, family, one, share, ahead), one) for one in tried]
            least = min(((loss, one) for loss, one in found if loss is not None), default=None)
            cells.append("-" if least is None else f"{least[0]:.2f} ({least[1]})")
        table.add_row(f"{100 * share:.0f} %", f"{limit:.1f}", *cells)
    return table


def shown(value: float | None, digits: int) -> str:
    """A figure of a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
