"""The decision network in a bundle: one command, one graph more, answers as in training, masks as before."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from pipeline import cli, outlining
from pipeline.bundle import Bundle, load_bundle
from pipeline.decide_export import add_decision, add_outline
from pipeline.deciding import FACTS, GRAPH, MAPS, PLACES, Candidate, open_decider
from pipeline.errors import ConfigError
from pipeline.key_policies import at_price
from pipeline.models.outline import OutlineNetwork
from pipeline.models.temporal import DecisionNetwork, settle
from pipeline.motion import MotionTracker
from pipeline.runtime import Precision, open_session
from pipeline.streets import render_street, write_clip
from pipeline.tracing import trace
from pipeline.video_encoder import open_video_encoder

ENGINES = ("onnxruntime", "openvino")
EXPERIMENT = {
    "name": "tiny-decide",
    "width": 8,
    "outline": {"width": 8, "frames": 4, "steps": 20, "batch": 4, "lr": 0.01, "weight_decay": 0.01},
    "streets": [{"seed": 3, "frames": 6, "fps": 12.0, "light": 1.0}],
    "approaches": {"pictures": 2, "frames": 4, "fastest": 0.03, "noise": 2.0},
    "samples": {"keys": 3, "longest_age": 4, "share": 1.0, "steps": 1, "fresh": 1, "cheaper": 0.3},
    "schedule": {"seed": 1, "epochs": 2, "batch": 8, "lr": 0.01, "weight_decay": 0.01},
}


@pytest.fixture(scope="module")
def network() -> DecisionNetwork:
    """Untrained, but its answers differ from candidate to candidate."""
    torch.manual_seed(2)
    made = DecisionNetwork(MAPS, FACTS, width=8)
    settle(made, torch.rand(64, MAPS, *PLACES), torch.rand(64, FACTS))
    with torch.no_grad():
        made.answer.weight.mul_(5)
    return made.eval()


@pytest.fixture(scope="module")
def deciding(tiny_bundle: Bundle, network: DecisionNetwork, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a graph that decides."""
    torch.manual_seed(3)
    outline = OutlineNetwork(tiny_bundle.tables.latents, tiny_bundle.tables.levels, width=8)
    home = tmp_path_factory.mktemp("deciding")
    return add_decision(add_outline(tiny_bundle, outline, home / "outlining"), network, home / "bundle")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_says_what_the_network_says(
    engine: str, batch: int, deciding: Bundle, network: DecisionNetwork
) -> None:
    maps, facts = torch.rand(batch, MAPS, *PLACES), torch.rand(batch, FACTS)
    session = open_session(deciding.graph(GRAPH), engine=engine, threads=1, precision=Precision.FLOAT32)
    (found,) = session.run(maps.numpy(), facts.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, network(maps, facts).numpy(), atol=0.1)  # weights in float16
    assert found.std() > 0 or batch == 1


def test_the_hash_covers_the_graph_and_the_other_graphs_stay(tiny_bundle: Bundle, deciding: Bundle) -> None:
    assert deciding.manifest.hash != tiny_bundle.manifest.hash
    assert deciding.has_graph(GRAPH)
    assert not tiny_bundle.has_graph(GRAPH)
    for name in tiny_bundle.manifest.graphs:
        assert deciding.graph(name).read_bytes() == tiny_bundle.graph(name).read_bytes()


def test_a_graph_can_be_put_into_the_bundles_own_folder_again_and_again(
    deciding: Bundle, network: DecisionNetwork, tmp_path: Path
) -> None:
    shutil.copytree(deciding.path, tmp_path / "own")
    again = add_decision(load_bundle(tmp_path / "own"), network, tmp_path / "own")
    assert again.manifest.hash == deciding.manifest.hash


def test_a_camera_asks_the_graph_of_its_bundle(deciding: Bundle) -> None:
    manifest = deciding.manifest
    first, *_, last = render_street(3, width=manifest.width, height=manifest.height, frames=4, fps=12)
    size = manifest.height, manifest.width
    tracker = MotionTracker(*size)
    tracker.start(first.image, np.full(deciding.latent_size, 0.1, np.float32))
    decider, found = open_decider(deciding), tracker.track(last.image, 3)
    assert decider is not None
    said = [decider(Candidate(found, age, 40, 300, 1, 1, size)) for age in (1, 30)]
    assert all(0 <= one <= 100 for one in said)
    assert said[0] != said[1]


def test_a_price_works_with_every_longest_age_where_the_bundle_decides(tiny_bundle: Bundle, deciding: Bundle) -> None:
    for longest_age in (1, 3):
        policy = at_price(5, longest_age=longest_age)
        open_video_encoder(deciding, engine="onnxruntime", threads=1, policy=policy)
        with pytest.raises(ConfigError, match="no graph decide"):
            open_video_encoder(tiny_bundle, engine="onnxruntime", threads=1, policy=policy)


def test_a_graph_of_another_kind_is_refused(deciding: Bundle, network: DecisionNetwork, tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, maps: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
            return network(maps, facts).repeat(1, 2)

    made = add_decision(deciding, network, tmp_path / "bundle")
    examples = torch.zeros(1, MAPS, *PLACES), torch.zeros(1, FACTS)
    trace(Two(), examples, made.graph(GRAPH), inputs=["maps", "facts"], outputs=["agreement"])
    with pytest.raises(ConfigError, match="not one number"):
        open_decider(made)


def test_a_graph_that_takes_other_inputs_is_refused(deciding: Bundle, network: DecisionNetwork, tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, maps: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
            return maps.sum((1, 2, 3)).unsqueeze(1) + facts.sum(1, keepdim=True)

    made = add_decision(deciding, network, tmp_path / "bundle")
    examples = torch.zeros(1, MAPS, 3, 4), torch.zeros(1, FACTS + 1)
    trace(Sum(), examples, made.graph(GRAPH), inputs=["maps", "facts"], outputs=["agreement"])
    with pytest.raises(ConfigError, match="which the graph does not take; train it again"):
        open_decider(made)


def test_one_command_trains_the_graph_into_a_bundle(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "decide.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    write_clip(tmp_path / "road.mp4", 5, width=96, height=64, frames=6)
    write_clip(tmp_path / "park.mp4", 6, width=96, height=64, frames=6)
    words = ["train-decide", "--config", tmp_path / "decide.yaml", "--bundle", tiny_bundle.path]
    words += ["--source", tmp_path / "road.mp4", "--held", tmp_path / "park.mp4", "--pictures", tmp_path / "pictures"]
    words += ["--run", tmp_path / "run", "--output", tmp_path / "out"]
    (tmp_path / "pictures").mkdir()
    for number, frame in enumerate(render_street(7, width=96, height=64, frames=7)):
        cv2.imwrite(str(tmp_path / "pictures" / f"{number}.png"), frame.image)
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "road: the edges of 3 frames" in printed  # four at most, so every second one of six
    assert "pictures: the edges of 7 frames" in printed
    assert "park, held out: edges" in printed
    assert "pictures, approached: " in printed
    assert "pictures, approached, learned from" in printed
    assert "road, learned from" in printed
    assert "park, held out" in printed
    made = load_bundle(tmp_path / "out")
    assert made.manifest.hash in printed
    assert made.has_graph(GRAPH)
    assert made.has_graph(outlining.GRAPH)
    assert (tmp_path / "run" / "decide.safetensors").is_file()
    assert (tmp_path / "run" / "outline.safetensors").is_file()


def test_a_source_that_is_not_there_is_one_sentence_at_once(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "decide.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    write_clip(tmp_path / "road.mp4", 5, width=96, height=64, frames=6)
    words = ["train-decide", "--config", tmp_path / "decide.yaml", "--bundle", tiny_bundle.path]
    words += ["--source", tmp_path / "road.mp4", "--held", tmp_path / "none.mp4"]
    words += ["--run", tmp_path / "run", "--output", tmp_path / "out"]
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""  # no video was looked at before
    (sentence,) = printed.err.strip().splitlines()
    assert "none.mp4" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["held", "source", "twice"])
def test_what_fails_on_the_way_leaves_the_bundle_as_it_was(
    named: str, deciding: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(deciding.path, tmp_path / "own")
    (tmp_path / "decide.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    write_clip(tmp_path / "road.mp4", 5, width=96, height=64, frames=6)
    write_clip(tmp_path / "one.mp4", 5, width=96, height=64, frames=1)
    words = ["train-decide", "--config", tmp_path / "decide.yaml", "--bundle", tmp_path / "own"]
    words += ["--source", tmp_path / "road.mp4", "--run", tmp_path / "run"]
    words += ["--pictures", tmp_path / "road.mp4"] if named == "twice" else [f"--{named}", tmp_path / "one.mp4"]
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert ("named twice" if named == "twice" else "one frame is no video") in sentence
    assert load_bundle(tmp_path / "own").manifest == deciding.manifest
