"""The table of a manifest: each level, file and class has its row."""

import pytest

from pipeline.bundle import content_files, default_bundle, load_bundle
from pipeline.bundle_table import print_manifest


def test_the_table_has_a_row_for_each_level_file_and_class(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = load_bundle(default_bundle())
    print_manifest(bundle)
    lines = capsys.readouterr().out.splitlines()
    manifest = bundle.manifest
    assert manifest.name in lines[0]
    for level in manifest.quality_levels:
        (row,) = [line for line in lines if f"quality {level.index} " in line]
        assert f"{level.rate_bpp * manifest.width * manifest.height / 8:.0f} bytes a frame" in row
        assert ("default" in row) == level.default
    for word in (*content_files(manifest), *(one.name for one in manifest.classes), f"{manifest.width}x"):
        assert any(word in line for line in lines)
