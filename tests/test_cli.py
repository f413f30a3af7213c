"""The command line: what it prints, how it exits, one sentence when something is wrong."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.bitstream import unpack
from pipeline.bundle import default_bundle, read_manifest
from pipeline.cli import app
from pipeline.mask_image import unpack_mask
from pipeline.messages import Kind
from pipeline.streets import render_street
from pipeline.video import sample_path

CONFIGS = Path(__file__).parent.parent / "configs"


def maskcast(*words: object) -> tuple[int, str, str]:
    """Run the command in this process; exit code, standard output, standard error."""
    runner = CliRunner()
    result = runner.invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def failure(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and standard error of a call through main, which turns errors into sentences."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return int(stop.value.code or 0), capsys.readouterr().err


@pytest.fixture(scope="module")
def packets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packets")
    code, out, _ = maskcast("encode", "--input", sample_path(), "--output", folder, "--engine", "onnxruntime")
    assert code == 0
    assert " a frame, in " in out
    return folder


def test_encode_then_decode_gives_one_mask_per_frame(packets: Path, tmp_path: Path) -> None:
    for path in sorted(packets.glob("*.mcp"))[5:]:
        path.unlink()
    code, out, _ = maskcast("decode", "--input", packets, "--output", tmp_path)
    assert code == 0
    assert "5 masks" in out
    masks = [unpack_mask(path.read_bytes())[0] for path in sorted(tmp_path.glob("*.png"))]
    assert [mask.id.sequence for mask in masks] == [0, 1, 2, 3, 4]
    assert len(np.unique(masks[0].classes)) > 3


def test_decode_holds_classes_to_those_before_where_it_is_told(packets: Path, tmp_path: Path) -> None:
    found = []
    for hysteresis in (0, 0.5):
        home = tmp_path / str(hysteresis)
        assert maskcast("decode", "--input", packets, "--output", home, "--hysteresis", hysteresis)[0] == 0
        found.append([unpack_mask(path.read_bytes())[0].classes for path in sorted(home.glob("*.png"))[:5]])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    changed = [sum(np.mean(one != other) for one, other in itertools.pairwise(masks)) for masks in found]
    assert 0 < changed[1] < 0.95 * changed[0]
    assert maskcast("decode", "--input", packets, "--output", tmp_path, "--hysteresis", 5)[0] == 2


def test_encode_takes_the_level_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with av.open(str(sample_path())) as clip:
        next(clip.decode(video=0)).to_image().save(tmp_path / "in" / "one.png")
    sizes = []
    for level in (0, 1, 2):
        words = ("--input", tmp_path / "in", "--output", tmp_path / str(level), "--quality", level)
        code, _, _ = maskcast("encode", *words, "--engine", "onnxruntime")
        assert code == 0
        file = tmp_path / str(level) / "one.mcp"
        assert unpack(file.read_bytes()).quality == level
        sizes.append(file.stat().st_size)
    assert sizes == sorted(sizes)
    assert maskcast("decode", "--input", tmp_path / "2", "--output", tmp_path / "masks")[0] == 0


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rendered frames in CamVid's layout."""
    root = tmp_path_factory.mktemp("streets")
    (root / "splits").mkdir()
    for at, frame in enumerate(itertools.islice(render_street(5, frames=2), 2)):
        assert cv2.imwrite(str(root / f"image{at}.png"), frame.image[..., ::-1])
        assert cv2.imwrite(str(root / f"labels{at}.png"), frame.labels)
    (root / "splits" / "val.txt").write_text("image0.png labels0.png\nimage1.png labels1.png\n")
    return root


def test_evaluate_measures_one_level_or_all_of_them(streets: Path, tmp_path: Path) -> None:
    words = ("evaluate", "--data", streets, "--engine", "onnxruntime", "--json", tmp_path / "figures.json")
    code, out, _ = maskcast(*words, "--quality", 1)
    assert code == 0
    assert "quality 1" in out
    one = json.loads((tmp_path / "figures.json").read_text())
    code, out, _ = maskcast(*words, "--all-levels")
    assert code == 0
    levels = json.loads((tmp_path / "figures.json").read_text())
    known = [level.index for level in read_manifest(default_bundle()).quality_levels]
    assert [level["quality"] for level in levels] == known
    assert {**levels[1], "stage_ms": None} == {**one, "stage_ms": None}
    first_words = [line.split()[0] for line in out.splitlines()]
    assert [int(word) for word in first_words if word.isdigit()] == 2 * known  # masks, then class labels


def test_encode_takes_a_key_interval_and_a_threshold_and_inspect_shows_the_warps(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = next(render_street(5, frames=1)).image[..., ::-1]
    for number in range(4):
        assert cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), picture)
    interval, threshold = ("--key-interval", 2), ("--threshold", 90)
    for name, options, keys in (("both", (*interval, *threshold), [0, 2]), ("one", threshold, [0])):
        words = ("--input", tmp_path / "in", "--output", tmp_path / name, "--engine", "onnxruntime")
        assert maskcast("encode", *words, *options)[0] == 0
        sent = [unpack(path.read_bytes()) for path in sorted((tmp_path / name).glob("*.mcp"))]
        assert [packet.id.sequence for packet in sent if packet.regions[0].kind is Kind.KEY] == keys
    code, out, _ = maskcast("inspect", tmp_path / "one" / "3.mcp")
    assert code == 0
    assert f"WARP of the KEY in sequence 0, age 3, {len(sent[3].regions[0].body)} bytes" in out
    assert maskcast("decode", "--input", tmp_path / "both", "--output", tmp_path / "masks")[0] == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4


def test_encode_takes_a_lookahead_and_inspect_shows_the_key_ahead(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(render_street(5, width=480, height=360, frames=6)):
        assert cv2.imwrite(str(tmp_path / "in" / f"street-{number}.png"), frame.image[..., ::-1])
    words = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--engine", "onnxruntime")
    code, out, _ = maskcast("encode", *words, "--key-interval", 4, "--lookahead", 3)
    assert (code, "6 packets" in out) == (0, True)
    sent = [unpack(path.read_bytes()) for path in sorted((tmp_path / "out").glob("*.mcp"))]
    kinds = ["".join(region.kind.name[0] for region in packet.regions) for packet in sent]
    assert kinds == ["K", "KWB", "WB", "WB", "B", "W"]
    sizes = [len(region.body) for region in sent[1].regions]
    code, out, _ = maskcast("inspect", tmp_path / "out" / "street-1.mcp")
    assert code == 0
    assert f"KEY of sequence 4, ahead of it, age 3, {sizes[0]} bytes" in out
    assert f"WARP of the KEY in sequence 0, age 1, {sizes[1]} bytes" in out
    assert f"BACK of the KEY in sequence 4, age 3, {sizes[2]} bytes" in out
    assert out.count("region 0") == 3
    assert "BACK" in maskcast("inspect", tmp_path / "out" / "street-4.mcp")[1]
    assert maskcast("decode", "--input", tmp_path / "out", "--output", tmp_path / "masks")[0] == 0
    stems = [path.stem for path in sorted((tmp_path / "masks").glob("*.png"))]
    assert stems == [path.stem for path in sorted((tmp_path / "in").iterdir())]


def test_encode_takes_a_grid_and_inspect_shows_its_regions(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        picture = next(render_street(5, frames=1)).image[..., ::-1]
        assert cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), picture)
    words = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--engine", "onnxruntime")
    assert maskcast("encode", *words, "--grid", "2x1", "--key-interval", 2)[0] == 0
    code, out, _ = maskcast("inspect", tmp_path / "out" / "1.mcp")
    assert code == 0
    assert "2x1" in out and "region 1" in out
    assert out.count("WARP of the KEY in sequence 0, age 1") == 2
    assert maskcast("decode", "--input", tmp_path / "out", "--output", tmp_path / "masks")[0] == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 2


def test_a_packet_without_its_key_is_failed_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        assert cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), next(render_street(5, frames=1)).image)
    words = ("--input", tmp_path / "in", "--output", tmp_path / "both", "--engine", "onnxruntime")
    assert maskcast("encode", *words, "--key-interval", 2)[0] == 0
    (tmp_path / "both" / "0.mcp").unlink()
    code, err = failure(capsys, "decode", "--input", tmp_path / "both", "--output", tmp_path / "out")
    assert code == 1
    assert "1.mcp" in err and "sequence 0 is not here" in err
    assert len(err.strip().splitlines()) == 1


def test_inspect_shows_a_packet(packets: Path) -> None:
    code, out, _ = maskcast("inspect", next(packets.glob("*.mcp")))
    assert code == 0
    assert "KEY, age 0" in out


def test_inspect_shows_a_bundle() -> None:
    code, out, _ = maskcast("inspect", default_bundle())
    assert code == 0
    assert "pedestrian" in out
    assert "bytes a frame" in out


@pytest.mark.parametrize("file", sorted((CONFIGS / "nodes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_settings_file_is_valid(file: Path) -> None:
    code, out, _ = maskcast("config", "validate", file)
    assert code == 0
    assert "valid settings" in out


@pytest.mark.parametrize("node", ["camera", "gateway", "worker", "viewer", "demo"])
def test_every_node_has_a_schema(node: str) -> None:
    code, out, _ = maskcast("config", "schema", node)
    assert code == 0
    assert json.loads(out)["type"] == "object"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["encode", "--input", "none.mp4", "--output", "out"], "cannot open none.mp4"),
        (["decode", "--input", "none", "--output", "out"], "there is no such folder"),
        (["inspect", "none"], "no such bundle folder or packet file"),
        (["evaluate", "--data", "none"], "data set none: there is no such folder"),
        (["evaluate", "--data", "."], "none of splits/ (camvid)"),
        (["evaluate", "--data", ".", "--dataset", "camvid"], "splits"),
        (["evaluate", "--data", ".", "--dataset", "kitti"], "use camvid, cityscapes, coco"),
        (["evaluate", "--data", "none", "--quality", "1", "--all-levels"], "only one of the two"),
        (["encode", "--input", "none.mp4", "--output", "out", "--quality", "99"], "quality 99"),
        (["encode", "--input", "x", "--output", "y", "--key-interval", "0"], "key interval 0"),
        (["encode", "--input", "x", "--output", "y", "--threshold", "101"], "threshold 101"),
        (["encode", "--input", "x", "--output", "y", "--grid", "2x10"], "grid 2x10"),
        (["encode", "--input", "x", "--output", "y", "--lookahead", "3"], "lookahead 3: every frame is a KEY"),
        (["encode", "--input", "x", "--output", "y", "--key-interval", "4", "--lookahead", "31"], "lookahead 31"),
        (["encode", "--input", "x", "--output", "y", "--key-interval", "4", "--lookahead", "-1"], "lookahead -1"),
        (
            ["encode", "--input", "x", "--output", "y", "--threshold", "90", "--grid", "2x2", "--lookahead", "3"],
            "with a lookahead frames are whole; use 1x1",
        ),
        (["camera", "--lookahead", "31"], "encoder.lookahead"),
        (
            ["camera", "--lookahead", "3", "--grid", "2x2"],
            "encoder: lookahead is for whole frames: set it to 0, or grid to 1x1",
        ),
        (["encode", "--input", "rtsp://u:secret@cam/1", "--output", "y"], "input rtsp://cam/1: encode takes a clip"),
        (["encode", "--bundle", "none", "--input", "x", "--output", "y"], "there is no such folder"),
        (["camera", "--source", "none.mp4"], "cannot open none.mp4"),
        (["camera", "--name", "Bad Name"], "camera name"),
        (["camera", "--key-interval", "257"], "encoder.key_interval"),
        (["camera", "--threshold", "-1"], "encoder.threshold"),
        (["camera", "--threshold", "96", "--price", "8"], "only one of the two"),
        (["camera", "--threshold", "0", "--price", "8"], "only one of the two"),
        (["encode", "--input", "x", "--output", "y", "--threshold", "0", "--price", "8"], "only one of the two"),
        (["camera", "--source", "rtsp://user:secret@camera/1", "--fast"], "source.fast: rtsp://camera/1 is live"),
        (["camera", "--fast", "--max-fps", "5"], "--fast plays every frame of a recording; leave out --max-fps"),
        (["camera", "--max-fps", "0"], "source.max_fps: input should be greater than or equal to 0.01"),
        (["demo", "--max-fps", "0"], "source.max_fps: input should be greater than or equal to 0.01"),
        (["camera", "--uplink", "http://x"], "uplink: not of its form; where packets go: mqtt://host:port"),
        (["camera", "--grid", "2by2"], "encoder.grid: not of its form; rows x columns of regions, such as 2x2"),
        (["worker", "--bundle", "none"], "there is no such folder"),
        (["gateway", "--config", "none.yaml"], "none.yaml"),
        (["config", "schema", "fridge"], "use one of"),
    ],
    ids=" ".join,
)
def test_wrong_calls_get_one_sentence_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = failure(capsys, *words)
    assert code == 2
    assert said in err
    sentences = [line for line in err.splitlines() if line.startswith("maskcast: ")]
    assert len(sentences) == 1
    assert "Traceback" not in err


def test_a_damaged_packet_file_is_failed_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.mcp").write_bytes(b"nonsense")
    code, err = failure(capsys, "inspect", tmp_path / "x.mcp")
    assert code == 1
    assert err.startswith(f"maskcast: {tmp_path / 'x.mcp'}: packet: ")
    assert err.endswith("name a bundle folder, or a file of maskcast encode\n")


def test_a_file_with_few_settings_is_valid_for_the_node_that_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("encoder: {quality: 3}\n")
    code, err = failure(capsys, "config", "validate", file)
    assert (code, "--node" in err) == (2, True)
    code, out, _ = maskcast("config", "validate", file, "--node", "camera")
    assert (code, out.endswith("valid settings of the camera node\n")) == (0, True)
    file.write_text("encoder: {qualty: 3}\n")
    code, err = failure(capsys, "config", "validate", file, "--node", "camera")
    assert (code, "did you mean encoder.quality?" in err) == (2, True)


def test_a_place_that_cannot_be_written_is_named(
    packets: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    code, err = failure(capsys, "decode", "--input", packets, "--output", tmp_path / "taken")
    assert code == 1
    assert "taken" in err
    assert len(err.strip().splitlines()) == 1


def test_an_unknown_option_exits_2() -> None:
    code, _, err = maskcast("demo", "--colour", "red")
    assert code == 2
    assert "--colour" in err


def test_the_installed_command_prints_its_help() -> None:
    words = [sys.executable, "-m", "pipeline.cli", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    for name in ("demo", "camera", "gateway", "worker", "viewer", "watch", "encode", "decode", "evaluate", "inspect"):
        assert name in done.stdout
