"""A bundle tuned to a site without labels: what it learns, what it keeps, what it says of itself, and its errors."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny
import torch
from graphs import light_meter
from test_restoring import described

from pipeline import adapting, cli
from pipeline.adapting import Adapted, Budget, Site, adapt, is_better
from pipeline.agreement import Agreement, agreement
from pipeline.bundle import Bundle, load_bundle
from pipeline.context_fitting import Effort
from pipeline.datasets import Classes, LabelledClass
from pipeline.decide_export import add_decision
from pipeline.deciding import FACTS, GRAPH, MAPS
from pipeline.models.temporal import DecisionNetwork
from pipeline.restoring import restore
from pipeline.site_frames import class_maps, opinions, read_shots, split_in_time
from pipeline.teachers import load_teachers

SHORT = Effort(steps=4, batch=4, learning_rate=0.003)
STEPS = 60


def teacher(path: Path) -> Path:
    """A graph that takes what is bright for road and what is dark for sky."""
    return light_meter(path, tiny.CLASSES, bright=tiny.ROAD, dark=tiny.SKY)


@dataclass(frozen=True)
class Ran:
    """One run of `adapt`: what was asked for, what came of it, what it said."""

    site: Site
    result: Adapted
    said: list[str]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = load_bundle(described(tiny_bundle, tmp_path_factory.mktemp("described") / "bundle"))
    return add_decision(made, DecisionNetwork(MAPS, FACTS, width=4), made.path)


@pytest.fixture(scope="module")
def ran(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    home, said = tmp_path_factory.mktemp("site"), []
    site = Site(
        bundle=bundle.path,
        source=tiny.pictures(home / "gate", 30),
        teachers=(teacher(home / "teacher.onnx"),),
        output=home / "tuned",
    )
    budget = Budget(minutes=60, steps=STEPS, tables=SHORT)
    return Ran(site, adapt(site, budget=budget, tell=said.append), said)


def test_the_teacher_is_agreed_with_more_on_frames_that_were_not_trained_on(ran: Ran) -> None:
    assert (ran.result.learned, ran.result.held, ran.result.steps) == (20, 6, STEPS)
    for old, new in zip(ran.result.before, ran.result.after, strict=True):
        assert new.pixels > old.pixels
        assert old.quality == new.quality


def test_figures_are_those_of_both_bundles_on_frames_of_other_times(ran: Ran, bundle: Bundle) -> None:
    shots = read_shots(ran.site.source, (tiny.WIDTH, tiny.HEIGHT))
    held = [shots[i] for i in split_in_time(len(shots)).held]
    sees = load_teachers(
        ran.site.teachers,
        size=(2 * tiny.WIDTH, 2 * tiny.HEIGHT),
        mirrored=False,
        described=Classes(tuple(LabelledClass(n, c) for n, c in tiny.COLOURS.items()), tiny.FROM_CITYSCAPES),
        device=torch.device("cpu"),
    )
    maps = class_maps(opinions(sees, held, (tiny.HEIGHT, tiny.WIDTH), lambda _: None))
    images = [shot.coded for shot in held]
    assert agreement(bundle, images, maps) == ran.result.before
    assert agreement(ran.result.bundle, images, maps) == ran.result.after


def test_the_new_bundle_says_what_it_is_and_can_be_tuned_again(ran: Ran, bundle: Bundle) -> None:
    old, new = bundle.manifest, load_bundle(ran.site.output).manifest
    assert new.hash == ran.result.bundle.manifest.hash != old.hash
    assert (new.width, new.height, new.classes, new.network) == (old.width, old.height, old.classes, old.network)
    assert new.name == "tiny-gate"
    assert old.hash[:8] in new.created_by
    assert "teacher.onnx" in new.created_by
    assert "gate without labels" in new.dataset
    assert str(ran.site.output.parent) not in new.model_dump_json()
    assert new.default_quality == old.default_quality
    assert [(q.rate_bpp, q.miou) for q in new.quality_levels] == [(q.rate_bpp, q.miou) for q in ran.result.after]
    assert restore(ran.result.bundle).network.levels == tiny.LEVELS


def test_what_goes_on_is_told(ran: Ran) -> None:
    assert ran.said[0] == "20 frames to learn from, 6 of other times to measure on"
    assert ran.said[-4].startswith(f"{STEPS} steps; ")
    assert ran.said[-1] == f"quality levels fitted: {tiny.LEVELS}"
    (left_out,) = [line for line in ran.said if "left out" in line]
    assert "train-decide" in left_out
    assert not ran.result.bundle.has_graph(GRAPH)


def test_figures_are_plain_values(ran: Ran) -> None:
    figures = json.loads(json.dumps(adapting.as_json(ran.result)))
    assert figures["bundle"] == ran.result.bundle.manifest.hash
    assert [one["quality"] for one in figures["after"]] == list(range(tiny.LEVELS))
    assert set(figures["before"][0]) == {"quality", "pixels", "miou", "rate_bpp"}


def at_default(*, pixels: float, rate_bpp: float) -> Agreement:
    return Agreement(quality=2, pixels=pixels, miou=0.5, rate_bpp=rate_bpp)


@pytest.mark.parametrize(
    ("pixels", "rate_bpp", "better"),
    [
        (0.90, 0.100, True),
        (0.90, 0.150, True),
        (0.80, 0.090, True),
        (0.799, 0.090, True),
        (0.801, 0.101, True),
        (0.80, 0.100, False),
        (0.80, 0.101, False),
        (0.799, 0.100, False),
        (0.79, 0.050, False),
        (0.801, 0.103, False),
    ],
)
def test_a_bundle_is_better_by_agreement_or_bits_if_not_much_worse_by_the_other(
    pixels: float, rate_bpp: float, better: bool
) -> None:
    assert is_better(at_default(pixels=0.8, rate_bpp=0.1), at_default(pixels=pixels, rate_bpp=rate_bpp)) == better


def test_enough_steps_make_it_better(ran: Ran) -> None:
    assert ran.result.fault is None


def test_a_bundle_that_is_no_better_is_written_but_said_to_be_none(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = replace(ran.result, before=ran.result.after, after=ran.result.before)
    monkeypatch.setattr(adapting, "adapt", lambda *_, **__: turned)
    sentence = failure(capsys, ran.site, "--json", str(tmp_path / "figures.json"), code=1).strip()
    assert sentence.startswith(f"maskcast: {ran.site.output} is no better than {ran.site.bundle}: at quality ")
    assert sentence.endswith("; give --minutes more")
    assert "\n" not in sentence
    assert json.loads((tmp_path / "figures.json").read_text())["fault"] in sentence


def failure(capsys: pytest.CaptureFixture[str], site: Site, *words: str, code: int = 2) -> str:
    """What the command says when it ends with this code."""
    named = {"--bundle": site.bundle, "--source": site.source, "--output": site.output}
    call = ["adapt", *(str(word) for pair in named.items() for word in pair), *words]
    with pytest.raises(SystemExit) as ended:
        cli.main([*call, *(word for one in site.teachers for word in ("--teacher", str(one)))])
    assert ended.value.code == code
    return capsys.readouterr().err


def test_one_command_does_it_in_the_minutes_given(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    files = ["--bundle", ran.site.bundle, "--source", ran.site.source, "--teacher", ran.site.teachers[0]]
    words = [*files, "--output", tmp_path / "out", "--minutes", 0.01, "--json", tmp_path / "figures.json"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["adapt", *map(str, words)])
    said = capsys.readouterr()
    assert "bits per pixel" in said.out
    assert "6 frames not trained on" in said.out
    assert "20 frames to learn from" in said.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["bundle"] == load_bundle(tmp_path / "out").manifest.hash
    assert 0 < figures["steps"] < STEPS
    # How far so few steps lead depends on the machine; what is said of it must be what was measured.
    assert ended.value.code == (1 if figures["fault"] else 0)
    assert (figures["fault"] or "steps on 20 frames") in said.err + said.out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": "none.mp4"}, "none.mp4: no images and no clip; name a folder of images or a video file"),
        ({"source": "short"}, "short: 9 frames are too few"),
        ({"teachers": ("none.onnx",)}, "teacher {home}/none.onnx: no such file"),
        ({"teachers": ("short/000.png",)}, "short/000.png: it is no file of weights"),
        ({"teachers": ("three.onnx",)}, "three.onnx: has 3 classes, neither"),
        ({"bundle": "strange"}, "network.from_cityscapes names classes that it has not"),
        ({"bundle": "old"}, "does not say which network it is of; export it again"),
        ({"bundle": "none"}, "there is no such folder"),
        ({"output": "own"}, "that is the bundle itself; name another folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(
    bundle: Bundle,
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, object],
    said: str,
) -> None:
    shutil.copytree(bundle.path, tmp_path / "own")
    shutil.copytree(tiny_bundle.path, tmp_path / "old")
    described(tiny_bundle, tmp_path / "strange", from_cityscapes=(0, tiny.CLASSES))
    tiny.pictures(tmp_path / "short", 9)
    light_meter(tmp_path / "three.onnx", 3, bright=0, dark=1)
    teacher(tmp_path / "teacher.onnx")
    tiny.pictures(tmp_path / "site", 10)
    named = {"bundle": "own", "source": "site", "teachers": ("teacher.onnx",), "output": "out", **changed}
    teachers = tuple(tmp_path / name for name in named.pop("teachers"))
    before = sorted(tmp_path.rglob("*"))
    site = Site(**{field: tmp_path / name for field, name in named.items()}, teachers=teachers)
    sentence = failure(capsys, site)
    assert said.format(home=tmp_path) in sentence
    assert sentence.startswith("maskcast: ")
    assert "Traceback" not in sentence
    assert sorted(tmp_path.rglob("*")) == before


def test_minutes_below_the_least_are_refused(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(bundle.path, tmp_path, (tmp_path,), tmp_path)
    assert "--minutes" in failure(capsys, site, "--minutes", "0")
