"""The comparison of seeds: means, their spread, and what is said of two variants."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import test_layouts
import tiny
import yaml
from test_checkpoint import trainee

from benchmarks import seeds
from benchmarks.seeds import (
    Comparison,
    Difference,
    Level,
    Variant,
    as_table,
    by_level,
    difference,
    measured,
    seeds_of,
    variant,
)
from pipeline.checkpoint import save
from pipeline.errors import ConfigError
from pipeline.layouts import LAYOUTS
from pipeline.measuring import Measured


def test_a_variant_names_its_config_and_its_runs() -> None:
    found = variant("K=3,k3.yaml,a,b,c")
    assert (found.name, found.config, found.runs) == ("K=3", Path("k3.yaml"), (Path("a"), Path("b"), Path("c")))


@pytest.mark.parametrize("text", ["", "K=3", "K=3,k3.yaml", "K=3,k3.yaml,a"])
def test_one_run_says_nothing_of_luck(text: str) -> None:
    with pytest.raises(ConfigError, match="two runs or more"):
        variant(text)


def test_the_error_of_a_difference_is_that_of_both_means() -> None:
    found = difference([3.0, 5.0], [1.0, 1.0], paired=False)
    assert found == Difference(3.0, pytest.approx(1.0))


def test_what_a_seed_does_to_both_of_a_pair_is_no_error_of_their_difference() -> None:
    assert difference([53.0, 43.5, 63.0], [50.0, 40.0, 60.5], paired=True) == Difference(
        pytest.approx(3.0), pytest.approx(0.5 / 3**0.5)
    )


@pytest.mark.parametrize(("of_b", "error"), [([1, 2], 10.1), ([2, 1], 0.1), ([2, 3], 7.14)])
def test_pairs_are_of_one_seed_in_whichever_order_runs_are_named(of_b: list[int], error: float) -> None:
    level = Level(0, {"a": [0.1, 0.1], "b": [0.1, 0.1]}, {"a": [50.0, 60.2], "b": [60.0, 50.0]})
    gain = Comparison("val", {"a": [1, 2], "b": of_b}, [level]).gain(level)
    assert gain.miou == pytest.approx(-0.1)
    assert gain.error == pytest.approx(error, abs=0.01)


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
    assert as_table(Comparison("val", {"a": [1, 2], "b": [1, 2]}, [first, second])).row_count == 2


def test_the_table_has_the_rates_of_both() -> None:
    level = Level(0, {"a": [0.01, 0.03], "b": [0.05, 0.05]}, {"a": [50.0, 60.0], "b": [50.0, 60.0]})
    table = as_table(Comparison("val", {"a": [1, 2], "b": [3, 4]}, [level]))
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert (cells["a: bpp"], cells["b: bpp"], cells["difference"]) == (["0.0200"], ["0.0500"], ["+0.00 (se 7.07)"])


def test_runs_of_other_numbers_of_levels_are_refused() -> None:
    one, other = ([Measured("val", level, 0.5, 0.1) for level in range(count)] for count in (2, 3))
    with pytest.raises(ConfigError, match="2 and 3 quality levels"):
        by_level({"a": [one, one], "b": [one, other]})


def test_image_codecs_have_no_masks_to_compare(tmp_path: Path) -> None:
    config = Path(__file__).parent.parent / "configs" / "train" / "compare" / "image-codec.yaml"
    with pytest.raises(ConfigError, match=r"image-codec\.yaml: model\.decoder image makes no masks"):
        measured(Variant("codec", config, (tmp_path, tmp_path)), tmp_path, "val")


def run_of(folder: Path, *, seed: int, epochs_done: int = 1, **schedule: object) -> Path:
    folder.mkdir()
    experiment = tiny.experiment(schedule={"epochs": 1, "seed": seed, **schedule})
    save(folder, trainee(), experiment, epochs_done=epochs_done)
    return folder


def test_runs_that_differ_in_their_seeds_alone_are_compared(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny.experiment(schedule={"epochs": 1}).model_dump(mode="json")))
    first, second = run_of(tmp_path / "a", seed=1), run_of(tmp_path / "b", seed=2)
    assert seeds_of(Variant("tiny", config, (first, second))) == [1, 2]
    wrong = [
        (run_of(tmp_path / "twin", seed=1), r"a and .*twin have one seed, 1"),
        (run_of(tmp_path / "stopped", seed=3, epochs_done=0), "0 of 1 epochs are done"),
        (run_of(tmp_path / "other", seed=3, lr=0.5), r"another schedule\.lr"),
    ]
    for run, said in wrong:
        with pytest.raises(ConfigError, match=said):
            seeds_of(Variant("tiny", config, (first, run)))


def test_runs_are_measured_at_the_size_that_their_network_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, config, sizes = test_layouts.coco(tmp_path / "coco"), tmp_path / "coco.yaml", []
    monkeypatch.setattr(seeds, "load_trained", lambda *_: None)
    monkeypatch.setattr(seeds, "measure", lambda *_, size, **__: sizes.append(size) or [])
    on_disk = tiny.experiment(data={"dataset": "coco"}, schedule={"epochs": 1})
    config.write_text(yaml.safe_dump(on_disk.model_dump(mode="json")))
    runs = (run_of(tmp_path / "a", seed=1), run_of(tmp_path / "b", seed=2))
    measured(Variant("coco", config, runs), root, "train")
    assert sizes == [LAYOUTS["coco"].size] * 2


def test_a_comparison_that_was_kept_is_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level = Level(0, {"a": [0.01, 0.01], "b": [0.01, 0.01]}, {"a": [50.0, 60.0], "b": [50.5, 60.5]})
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(asdict(Comparison("val", {"a": [1, 2], "b": [1, 2]}, [level]))))
    seeds.main(json_from=kept)
    printed = capsys.readouterr().out
    assert "2 and 2 seeds, pair by pair" in printed
    assert "+0.50 (se 0.00)" in printed


@pytest.mark.parametrize(
    "text", ["", "[]", '{"split": "val", "levels": []}', '{"split": 1, "seeds": {}, "levels": [1]}']
)
def test_what_is_no_comparison_is_refused(tmp_path: Path, text: str) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(text)
    with pytest.raises(SystemExit, match="not a comparison"):
        seeds.main(json_from=kept)
    with pytest.raises(SystemExit, match="give --data and --runs, or --json-from"):
        seeds.main()
