"""The grids' benchmark: what it compares, and that its figures are those of the packets."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.grids import GRIDS, Setting, main, measure, settings_of, ways_of
from pipeline.bitstream import pack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import open_encoder
from pipeline.key_policies import EVERY_FRAME, at_interval, at_threshold
from pipeline.messages import Frame, FrameId
from pipeline.regions import Grid
from pipeline.streets import render_street
from pipeline.video_encoder import VideoEncoder

LEVEL = 4  # at the lowest ones a KEY of a region takes no more than a WARP does


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle())


@pytest.fixture(scope="module")
def images(bundle: Bundle) -> list[np.ndarray]:
    size = {"width": bundle.manifest.width, "height": bundle.manifest.height}
    return [one.image for one in render_street(4, **size, frames=4, fps=10)]


def test_every_grid_is_measured_with_overlap_and_without() -> None:
    found = settings_of((2,), (95.0,))
    assert found[0] == Setting(1, 1, 32)
    assert {(one.rows, one.columns, one.overlap_px) for one in found} == {
        (1, 1, 32), *((rows, columns, overlap) for rows, columns in GRIDS[1:] for overlap in (0, 32)),
    }  # fmt: skip
    assert [one.policy for one in found[:2]] == [EVERY_FRAME, at_interval(2)]
    assert found[2].policy == at_threshold(95)
    assert len(found) == 3 * 5


def test_figures_are_of_the_packets_that_were_sent(bundle: Bundle, images: list[np.ndarray]) -> None:
    settings = [Setting(1, 1, 32), Setting(2, 2, 0, interval=2)]
    size = images[0].shape[:2]
    labels = [np.zeros(size, np.uint8)] * 4
    first, second = measure(
        images, labels, bundle, ways_of(bundle, settings, level=LEVEL, engine="onnxruntime", threads=1)
    )
    sizes = []
    for grid, policy in ((Grid(1, 1, *size), EVERY_FRAME), (Grid(2, 2, *size, 0), at_interval(2))):
        encoder = open_encoder(bundle, engine="onnxruntime", threads=1, quality=LEVEL, grid=grid, outlines=True)
        camera = VideoEncoder(encoder, bundle, policy=policy, grid=grid)
        sizes.append(sum(len(pack(camera.encode(Frame(FrameId(0, at), 0, one)))) for at, one in enumerate(images)))
    assert second.share == sizes[1] / sizes[0]
    assert (first.share, first.differing, first.miou_loss) == (1, 0, 0)
    assert (second.key_share, second.graph_share) == (0.5, 0.5)
    assert second.warp_camera_ms is not None and first.warp_camera_ms is None


def test_a_run_writes_its_figures(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    options = ["--frames", "2", "--interval", "2", "--threshold", "95", "--engine", "onnxruntime"]
    clip = Path(__file__).parent.parent / "samples" / "street.mp4"
    done = CliRunner().invoke(app, ["--clip", str(clip), "--json", str(tmp_path / "grids.json"), *options])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "grids.json").read_text())
    assert (written["video"], written["frames"], len(written["results"])) == ("street", 2, 15)
    assert written["results"][0]["miou_loss"] is None


def test_without_a_video_there_is_nothing_to_measure() -> None:
    with pytest.raises(SystemExit, match="name one video"):
        main()
