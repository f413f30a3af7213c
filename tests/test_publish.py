"""From a finished run to a bundle whose manifest says what was measured."""

from pathlib import Path

import pytest
import tiny

from pipeline.bundle import Bundle, load_bundle
from pipeline.datasets import camvid
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluate
from pipeline.publish import publish


@pytest.fixture(scope="module")
def published(tiny_camvid: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return publish(
        tiny.experiment(),
        data=tiny_camvid,
        run=tiny_run,
        folder=tmp_path_factory.mktemp("published") / "bundle",
        split="test",
        licence="CC0-1.0",
        command="maskcast export --run tiny",
    )


def test_manifest_claims_what_is_measured_on_the_split(published: Bundle, tiny_camvid: Path) -> None:
    (level,) = published.manifest.quality_levels
    measured = evaluate(published, camvid(tiny_camvid, "test"), split="test", engine="onnxruntime")
    assert level.default
    assert level.rate_bpp == pytest.approx(measured.rate_bpp)
    assert level.miou == pytest.approx(measured.miou)
    assert level.rate_bpp > 0


def test_manifest_describes_run_and_data(published: Bundle) -> None:
    manifest = published.manifest
    assert (manifest.name, manifest.licence) == ("tiny", "CC0-1.0")
    assert manifest.created_by == "maskcast export --run tiny"
    assert "train" in manifest.dataset
    assert "test" in manifest.dataset
    assert (manifest.width, manifest.height) == (tiny.WIDTH, tiny.HEIGHT)
    assert [(one.name, one.colour) for one in manifest.classes] == list(tiny.COLOURS.items())


def test_published_bundle_loads(published: Bundle) -> None:
    assert load_bundle(published.path).manifest == published.manifest


def test_run_that_is_not_there_leaves_no_bundle(tiny_camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none"):
        publish(
            tiny.experiment(),
            data=tiny_camvid,
            run=tmp_path / "none",
            folder=tmp_path / "bundle",
            split="test",
            licence="",
            command="",
        )
    assert not (tmp_path / "bundle").exists()
