"""A file of figures that could not be written is told before anything is measured."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipeline.options import JsonFile

app = typer.Typer()


@app.command()
def measure(json_file: JsonFile = None) -> None:
    print(f"measured, {json_file}")


def test_a_file_that_can_be_written_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    for words, told in (
        ([], "None"),
        (["--json", str(tmp_path / "new.json")], str(tmp_path / "new.json")),
        (["--json", str(tmp_path / "old.json")], str(tmp_path / "old.json")),
    ):
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.output) == (0, f"measured, {told}\n")
    assert (tmp_path / "old.json").read_text() == "{}"
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(("name", "said"), [("gone/a.json", "there is no folder"), (".", "is a folder")])
def test_another_is_refused_before_anything_is_measured(tmp_path: Path, name: str, said: str) -> None:
    result = CliRunner().invoke(app, ["--json", str(tmp_path / name)], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert said in result.output
    assert "measured" not in result.output
