"""What sharing a network costs: which level is which, and what is said at equal bits."""

from pathlib import Path

import pytest
from test_restoring import described

from benchmarks.bd_rate import Point
from benchmarks.sharing import Compared, as_table, compare, level_of
from pipeline.bundle import Bundle, load_bundle
from pipeline.errors import ConfigError

CURVE = [Point(0.01, 0.60), Point(0.02, 0.64), Point(0.04, 0.66)]


def test_at_equal_bits_the_curve_is_read_between_its_levels() -> None:
    found = compare(CURVE, Point(0.02, 0.65), split="val", level=1)
    assert (found.shared, found.alone) == (CURVE[1], Point(0.02, 0.65))
    assert found.gain == pytest.approx(0.01)
    assert compare(CURVE, Point(0.0283, 0.64), split="val", level=1).gain == pytest.approx(-0.0116, abs=0.001)


def test_where_more_bits_no_longer_help_the_best_so_far_counts() -> None:
    curve = [*CURVE[:2], Point(0.04, 0.635)]
    for rate in (0.03, 0.04):
        assert compare(curve, Point(rate, 0.65), split="val", level=2).gain == pytest.approx(0.01)
    assert compare(curve, Point(0.041, 0.65), split="val", level=2).gain is None


def test_beyond_the_curve_nothing_is_said() -> None:
    found = compare(CURVE, Point(0.005, 0.6), split="val", level=0)
    assert found.gain is None
    assert list(as_table([found]).columns[-1].cells) == ["out of reach"]


def test_the_table_is_in_percent() -> None:
    table = as_table([Compared("val", 2, Point(0.0401, 0.6604), Point(0.04, 0.67), 0.0123)])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["val", "2", "0.0401", "66.04", "0.0400", "67.00", "+1.23"]


def test_a_network_that_learned_alone_has_the_weight_of_a_level(tiny_bundle: Bundle, tmp_path: Path) -> None:
    shared = load_bundle(described(tiny_bundle, tmp_path / "shared", rate=(9.0, 4.0, 1.0)))
    single = load_bundle(described(tiny_bundle, tmp_path / "single", rate=(4.0,)))
    assert level_of(single, shared) == 1
    with pytest.raises(ConfigError, match=r"single: its bits weigh 4, those of .*other 9, 5, 1"):
        level_of(single, load_bundle(described(tiny_bundle, tmp_path / "other", rate=(9.0, 5.0, 1.0))))
    with pytest.raises(ConfigError, match="shared: 3 quality levels; name one that learned for one rate"):
        level_of(shared, shared)
