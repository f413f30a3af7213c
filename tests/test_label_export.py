"""A bundle with labels: one packet, a mask and scores; what the training saw is what the worker runs."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml

from pipeline import cli, datasets
from pipeline.bitstream import pack, unpack
from pipeline.bundle import MANIFEST, Bundle, Manifest, content_files, content_hash, load_bundle
from pipeline.codec import open_decoder, open_encoder
from pipeline.errors import BundleMismatch, ConfigError, PipelineError
from pipeline.evaluation import evaluate_labels, labels_as_json, labels_as_text
from pipeline.experiment import LabelExperiment, LabelSchedule
from pipeline.label_export import LabelGraph, add_labels, train_into_bundle
from pipeline.messages import Decoded, Frame, FrameId, Packet
from pipeline.models.label_decoder import LabelDecoder
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.recording import decode_files
from pipeline.training import load_trained

ENGINES = ("onnxruntime", "openvino")
SHARE = 0.01


@pytest.fixture(scope="module")
def decoder(tiny_network: SplitSegmenter) -> LabelDecoder:
    """Untrained, but its batch norms have seen latents, and its answers differ from picture to picture."""
    torch.manual_seed(3)
    made = LabelDecoder(tiny.experiment().model.latents, tiny.CLASSES, width=8)
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(8)))
        for level in range(tiny_network.levels):
            made.train()(tiny_network.prior(y, torch.full((8,), level)).y_hat)
        made.classify.weight.mul_(5)
    return made.eval()


@pytest.fixture(scope="module")
def labelled(
    tiny_bundle: Bundle, tiny_network: SplitSegmenter, decoder: LabelDecoder, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The tiny bundle with a graph for labels."""
    folder = tmp_path_factory.mktemp("labelled") / "bundle"
    return add_labels(tiny_bundle, tiny_network, decoder, folder, least_share=SHARE)


@pytest.fixture(scope="module")
def maskless(labelled: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same without its graph for masks."""
    folder = tmp_path_factory.mktemp("maskless") / "bundle"
    shutil.copytree(labelled.path, folder)
    graphs = {name: file for name, file in labelled.manifest.graphs.items() if name != "decode"}
    unsealed = labelled.manifest.model_copy(update={"graphs": graphs})
    sealed = unsealed.model_copy(update={"hash": content_hash(folder, content_files(unsealed))})
    (folder / MANIFEST).write_text(sealed.model_dump_json())
    return load_bundle(folder)


def packets_of(bundle: Bundle, count: int = 3, *, quality: int | None = None) -> Iterator[Packet]:
    encoder = open_encoder(bundle, engine="onnxruntime", quality=quality)
    for i, one in enumerate(tiny.scenes(count, seed=5)):
        yield encoder.encode(Frame(FrameId(7, i), 1000 + i, one.image))


def scores_of(result: Decoded | PipelineError) -> np.ndarray:
    assert isinstance(result, Decoded)
    assert result.scores is not None
    return result.scores.values


def test_a_packet_gives_a_mask_and_scores(labelled: Bundle) -> None:
    packets = list(packets_of(labelled))
    for packet, result in zip(packets, open_decoder(labelled, engine="onnxruntime").decode(packets), strict=True):
        scores = scores_of(result)
        assert isinstance(result, Decoded)
        assert result.mask is not None
        assert result.scores is not None
        assert (result.scores.id, result.scores.captured_ms, result.scores.bundle) == (
            packet.id, packet.captured_ms, labelled.id,
        )  # fmt: skip
        assert scores.shape == (tiny.CLASSES,)
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()
        assert scores.std() > 0.01


def test_the_mask_is_the_one_that_the_bundle_without_labels_makes(tiny_bundle: Bundle, labelled: Bundle) -> None:
    (before,) = open_decoder(tiny_bundle, engine="onnxruntime").decode(list(packets_of(tiny_bundle, 1)))
    (after,) = open_decoder(labelled, engine="onnxruntime").decode(list(packets_of(labelled, 1)))
    assert isinstance(before, Decoded)
    assert isinstance(after, Decoded)
    assert before.scores is None
    assert before.mask is not None
    assert after.mask is not None
    np.testing.assert_array_equal(before.mask.classes, after.mask.classes)


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_are_those_of_the_network_at_every_level(
    engine: str, labelled: Bundle, tiny_network: SplitSegmenter, decoder: LabelDecoder
) -> None:
    opened = open_decoder(labelled, engine=engine, batch=3)
    graph = LabelGraph(tiny_network.prior, decoder).eval()
    for level in (level.index for level in labelled.manifest.quality_levels):
        packets = list(packets_of(labelled, quality=level))
        y_hat = torch.from_numpy(np.stack([opened.y_hat(packet) for packet in packets]))
        with torch.no_grad():
            expected = graph(y_hat, torch.full((3,), level)).numpy()
        found = np.stack([scores_of(result) for result in opened.decode(packets)])
        np.testing.assert_allclose(found, expected, atol=0.02)  # weights in float16, products in bfloat16


def test_a_bad_packet_does_not_spoil_the_labels_of_its_batch(labelled: Bundle) -> None:
    first, second = packets_of(labelled, 2)
    decoder = open_decoder(labelled, engine="onnxruntime")
    results = decoder.decode([first, replace(first, bundle=bytes(4)), second])
    assert isinstance(results[1], BundleMismatch)
    (alone,) = decoder.decode([second])
    np.testing.assert_allclose(scores_of(results[2]), scores_of(alone), atol=1e-4)


def test_labels_can_be_left_out(labelled: Bundle) -> None:
    (result,) = open_decoder(labelled, engine="onnxruntime", labels=False).decode(list(packets_of(labelled, 1)))
    assert isinstance(result, Decoded)
    assert result.mask is not None
    assert result.scores is None


def test_a_bundle_without_masks_gives_scores_alone(maskless: Bundle, labelled: Bundle, tmp_path: Path) -> None:
    decoder = open_decoder(maskless, engine="onnxruntime")
    packets = list(packets_of(maskless, 2))
    results = decoder.decode(packets)
    both = open_decoder(labelled, engine="onnxruntime").decode(list(packets_of(labelled, 2)))
    for alone, beside in zip(results, both, strict=True):
        assert isinstance(alone, Decoded)
        assert alone.mask is None
        np.testing.assert_array_equal(scores_of(alone), scores_of(beside))
    (tmp_path / "a.mcp").write_bytes(pack(packets[0]))
    (written,) = decode_files(decoder, maskless, tmp_path, tmp_path / "out")
    assert written.path.name == "a.json"
    said = json.loads(written.path.read_text())
    assert [label["name"] for label in said["labels"]] == list(tiny.COLOURS)


def test_a_bundle_of_which_nothing_is_left_to_decode_is_refused(maskless: Bundle) -> None:
    with pytest.raises(ConfigError, match="labels are off"):
        open_decoder(maskless, engine="onnxruntime", labels=False)


def test_scores_that_are_not_for_the_bundles_classes_are_refused(
    tiny_bundle: Bundle, tiny_network: SplitSegmenter, tmp_path: Path
) -> None:
    fewer = LabelDecoder(tiny.experiment().model.latents, tiny.CLASSES - 1, width=8).eval()
    made = add_labels(tiny_bundle, tiny_network, fewer, tmp_path / "fewer", least_share=SHARE)
    with pytest.raises(ConfigError, match="10 scores for 11 classes"):
        open_decoder(made, engine="onnxruntime")


def test_the_hash_covers_the_labels_and_old_manifests_stay_valid(tiny_bundle: Bundle, labelled: Bundle) -> None:
    assert labelled.manifest.hash != tiny_bundle.manifest.hash
    assert labelled.manifest.presence_share == SHARE
    assert labelled.has_graph("labels")
    assert not tiny_bundle.has_graph("labels")
    old = json.loads((tiny_bundle.path / MANIFEST).read_text())
    old.pop("presence_share", None)
    assert Manifest.model_validate(old).presence_share is None
    for name in (tiny_bundle.manifest.graphs["encode"], tiny_bundle.manifest.graphs["decode"]):
        assert (labelled.path / name).read_bytes() == (tiny_bundle.path / name).read_bytes()


def test_labels_can_be_put_into_the_bundles_own_folder_again_and_again(
    labelled: Bundle, tiny_network: SplitSegmenter, decoder: LabelDecoder, tmp_path: Path
) -> None:
    shutil.copytree(labelled.path, tmp_path / "own")
    own = load_bundle(tmp_path / "own")
    assert add_labels(own, tiny_network, decoder, own.path, least_share=0.5).manifest.presence_share == 0.5


def test_a_bundle_of_another_network_is_refused(tiny_bundle: Bundle, decoder: LabelDecoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its encoder is not that of the run"):
        add_labels(tiny_bundle, tiny.network(seed=9), decoder, tmp_path / "other", least_share=SHARE)
    assert not (tmp_path / "other").exists()


def test_evaluation_holds_scores_against_labels_on_real_bytes(labelled: Bundle, tiny_camvid: Path) -> None:
    data = datasets.camvid(tiny_camvid, "train")
    result = evaluate_labels(labelled, data, split="train", engine="onnxruntime")
    encoder = open_encoder(labelled, engine="onnxruntime")
    sent = [pack(encoder.encode(Frame(FrameId(0, i), 0, image))) for i, image in enumerate(data.images)]
    assert result.rate_bpp == pytest.approx(8 * sum(map(len, sent)) / (len(sent) * tiny.WIDTH * tiny.HEIGHT))
    decoded = open_decoder(labelled, engine="onnxruntime").decode([unpack(one) for one in sent])
    scores = np.stack([scores_of(one) for one in decoded])
    assert result.accuracy.prevalence[tiny.SKY] == 1.0
    truth = np.stack([[(labels == k).mean() >= SHARE for k in range(tiny.CLASSES)] for labels in data.labels])
    found = scores >= 0.5
    assert result.accuracy.f1 == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    figures = json.loads(json.dumps(labels_as_json(result, labelled)))
    assert figures["class_precision"]["pole"] is None  # no scene has one
    assert "mAP" in labels_as_text(result, labelled)


def test_a_bundle_without_labels_cannot_be_evaluated_on_them(tiny_bundle: Bundle, tiny_camvid: Path) -> None:
    with pytest.raises(ConfigError, match="does not say which classes"):
        evaluate_labels(tiny_bundle, datasets.camvid(tiny_camvid, "val"), split="val")


def test_one_command_trains_labels_into_a_bundle_that_evaluate_measures(
    tiny_run: Path, tiny_camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.experiment()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(base.model_dump(mode="json")))
    settings = LabelExperiment(
        name="tiny-labels",
        network="tiny.yaml",
        width=8,
        places=1.0,
        least_share=SHARE,
        data=base.data,
        schedule=LabelSchedule(seed=1, epochs=2, batch=4, lr=0.01, warmup_steps=1, weight_decay=0.0, clip_norm=5.0),
    )
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    bundle = tiny.bundle(load_trained(base, tiny_run, tiny.CLASSES), tmp_path / "bundle")
    lines = list(
        train_into_bundle(
            tmp_path / "labels.yaml",
            data=tiny_camvid,
            network=tiny_run,
            run=tmp_path / "run",
            bundle=bundle.path,
            output=tmp_path / "out",
        )
    )
    assert [line.split()[1] for line in lines[:2]] == ["1/2", "2/2"]
    assert load_bundle(tmp_path / "out").has_graph("labels")
    words = ["evaluate", "--bundle", str(tmp_path / "out"), "--data", str(tiny_camvid), "--engine", "onnxruntime"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--json", str(tmp_path / "figures.json")])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert "micro F1" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["labels"]["prevalence"]) == set(tiny.COLOURS)
    assert "miou" in figures
