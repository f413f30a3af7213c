"""A file of figures, or of their drawing, that could not be written is told before anything is measured."""

from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import links_stepping, rate_control, rate_distortion, workers
from pipeline.options import FigureFile, JsonFile

app = typer.Typer()


@app.command()
def measure(json_file: JsonFile = None, figure: FigureFile = None) -> None:
    print(f"measured, {json_file or figure}")


@pytest.mark.parametrize("option", ["--json", "--figure"])
def test_a_file_that_can_be_written_is_passed_on(tmp_path: Path, option: str) -> None:
    (tmp_path / "old.json").write_text("{}")
    for words, told in (
        ([], "None"),
        ([option, str(tmp_path / "new.json")], str(tmp_path / "new.json")),
        ([option, str(tmp_path / "old.json")], str(tmp_path / "old.json")),
    ):
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.output) == (0, f"measured, {told}\n")
    assert (tmp_path / "old.json").read_text() == "{}"
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("option", ["--json", "--figure"])
@pytest.mark.parametrize(("name", "said"), [("gone/a.json", "there is no folder"), (".", "is a folder")])
def test_another_is_refused_before_anything_is_measured(tmp_path: Path, option: str, name: str, said: str) -> None:
    result = CliRunner().invoke(app, [option, str(tmp_path / name)], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert said in result.output
    assert "measured" not in result.output


@pytest.mark.parametrize(
    "benchmark", [links_stepping, rate_control, rate_distortion, workers], ids=lambda one: one.__name__
)
def test_benchmarks_that_draw_try_their_figure_first(tmp_path: Path, benchmark: ModuleType) -> None:
    drawing = typer.Typer()
    drawing.command()(benchmark.main)
    words = ["--data", str(tmp_path), "--bundle", f"none={tmp_path}", "--figure", str(tmp_path / "gone" / "a.png")]
    result = CliRunner().invoke(drawing, words, env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "there is no folder" in result.output
