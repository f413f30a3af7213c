"""The comparison of seeds: means, their spread, and what is said of two variants."""

from pathlib import Path

import pytest

from benchmarks.seeds import Difference, Level, as_table, by_level, difference, variant
from pipeline.errors import ConfigError
from pipeline.measuring import Measured


def test_a_variant_names_its_config_and_its_runs() -> None:
    found = variant("K=3,k3.yaml,a,b,c")
    assert (found.name, found.config, found.runs) == ("K=3", Path("k3.yaml"), (Path("a"), Path("b"), Path("c")))


@pytest.mark.parametrize("text", ["", "K=3", "K=3,k3.yaml", "K=3,k3.yaml,a"])
def test_one_run_says_nothing_of_luck(text: str) -> None:
    with pytest.raises(ConfigError, match="two runs or more"):
        variant(text)


def test_the_error_of_a_difference_is_that_of_both_means() -> None:
    found = difference([3.0, 5.0], [1.0, 1.0])
    assert found == Difference(3.0, pytest.approx(1.0))


def test_figures_are_gathered_level_by_level() -> None:
    runs = {
        name: [
            [Measured("val", level, 0.5 + run / 10 + level / 100, 0.01 * (level + 1)) for level in (0, 1)]
            for run in (0, 1)
        ]
        for name in ("a", "b")
    }
    first, second = by_level(runs)
    assert first == Level(0, {"a": [0.01, 0.01], "b": [0.01, 0.01]}, {"a": [50.0, 60.0], "b": [50.0, 60.0]})
    assert second.quality == 1
    assert second.miou["a"] == pytest.approx([51.0, 61.0])
    assert as_table([first, second], "a", "b", "two").row_count == 2
