"""The commands that train and export: what they write and print, and one sentence where the call is wrong."""

import importlib.util
from pathlib import Path

import pytest
import tiny
import yaml
from test_restoring import described

from pipeline import cli, training_commands
from pipeline.bundle import Bundle, load_bundle
from pipeline.context_fitting import Effort
from pipeline.experiment import Experiment


def written(path: Path, experiment: Experiment) -> Path:
    path.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written(tmp_path / "tiny.yaml", tiny.experiment())


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What is said of a call that is wrong: one sentence, exit 2, nothing on standard output."""
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    (sentence,) = err.strip().splitlines()
    assert sentence.startswith("maskcast: ")
    return sentence


def test_training_prints_a_line_per_epoch_and_goes_on_where_it_was(
    capsys: pytest.CaptureFixture[str], config: Path, tiny_camvid: Path, tmp_path: Path
) -> None:
    home = tiny.folders(tiny_camvid, tmp_path)
    words = ["train", "--config", config, "--data", tiny_camvid, "--run", home.run, "--backbone", home.backbone]
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("epoch")] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]
    assert "val: mIoU" in out
    assert call(capsys, *words)[:2] == (0, "")


def test_everything_a_run_reads_from_reaches_it(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import training

    seen = []
    monkeypatch.setattr(training, "train", lambda _, folders: seen.append(folders) or iter(()))
    words = (
        "--data d --run r --backbone b --teacher t1 --teacher t2 --unlabelled u1 --unlabelled u2 "
        "--start s --camera m --cache c"
    )
    assert call(capsys, "train", "--config", config, *words.split())[0] == 0
    (folders,) = seen
    assert (folders.data, folders.run, folders.backbone) == (Path("d"), Path("r"), Path("b"))
    assert folders.teachers == (Path("t1"), Path("t2"))
    assert folders.unlabelled == (Path("u1"), Path("u2"))
    assert (folders.start, folders.camera, folders.cache) == (Path("s"), Path("m"), Path("c"))


@pytest.mark.parametrize(("words", "seed"), [("", 1), ("--seed 0", 0), ("--seed 23", 23)])
def test_a_seed_takes_the_place_of_the_experiments(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch, words: str, seed: int
) -> None:
    from pipeline import training

    seen = []
    monkeypatch.setattr(training, "train", lambda experiment, _: seen.append(experiment) or iter(()))
    assert call(capsys, "train", "--config", config, "--data", "d", "--run", "r", *words.split())[0] == 0
    assert seen == [tiny.experiment(schedule={"seed": seed})]


@pytest.mark.parametrize(
    ("changed", "words", "said"),
    [
        ({}, "--data none", "data set none: no classes.json"),
        ({}, "--data DATA --backbone none", "backbone weights none"),
        ({"model": {"decoder": "se"}}, "--data DATA", "model.decoder 'se' is unknown"),
        ({"schedule": {"batch": 99}}, "--data DATA", "schedule.batch 99"),
        ({"teacher": {"weight": 1.0}}, "--data DATA", "add --teacher"),
        ({"teacher": {"weight": 1.0}}, "--data DATA --teacher none.onnx", "teacher none.onnx: no such file"),
        ({"data": {"unlabelled": 0.5}, "teacher": {"weight": 1.0}}, "--data DATA", "add --unlabelled"),
        ({"loss": {"labels": 0.0, "lovasz": 0.0}}, "--data DATA", "nothing to learn from"),
        ({}, "--data DATA --start none", "run none: no checkpoint.pt"),
        ({}, "--data DATA --camera none", "run none: no checkpoint.pt"),
        ({}, "--data DATA", "add --backbone FILE, or --start or --camera with a run or bundle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_call_of_train_is_said_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tiny_camvid: Path,
    tmp_path: Path,
    changed: dict[str, dict[str, object]],
    words: str,
    said: str,
) -> None:
    config = written(tmp_path / "changed.yaml", tiny.experiment(**changed))
    found = refusal(
        capsys, "train", "--config", config, "--run", tmp_path / "run", *words.replace("DATA", str(tiny_camvid)).split()
    )
    assert said in found


@pytest.mark.parametrize("command", ["train", "export", "train-labels"])
def test_an_experiment_that_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str], command: str, tmp_path: Path
) -> None:
    words = ["--config", "none.yaml", "--data", "d", "--run", tmp_path / "run"]
    if command == "train-labels":
        words += ["--network", "n", "--bundle", "b"]
    assert "experiment none.yaml: cannot be read" in refusal(capsys, command, *words)


def test_a_run_of_another_experiment_is_not_gone_on_with(
    capsys: pytest.CaptureFixture[str], tiny_camvid: Path, tiny_run: Path, tmp_path: Path
) -> None:
    other = written(tmp_path / "other.yaml", tiny.experiment(schedule={"lr": 0.5}))
    found = refusal(capsys, "train", "--config", other, "--data", tiny_camvid, "--run", tiny_run)
    assert f"run {tiny_run}: its checkpoint is of another experiment" in found


def test_export_writes_a_bundle_and_shows_what_it_claims(
    capsys: pytest.CaptureFixture[str], config: Path, tiny_camvid: Path, tiny_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pipeline import publish

    whole = publish.export
    monkeypatch.setattr(publish, "export", lambda *a, **k: whole(*a, **{**k, "effort": Effort(steps=2, batch=2)}))
    words = ["--data", tiny_camvid, "--run", tiny_run, "--bundle", tmp_path / "bundle", "--licence", "CC0-1.0"]
    code, out, err = call(capsys, "export", "--config", config, *words, "--measure-on", "test", "--no-hyper")
    assert code == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.tables.prior is None
    assert bundle.manifest.licence == "CC0-1.0"
    assert "measured on test" in bundle.manifest.dataset
    assert [level.index for level in bundle.manifest.quality_levels] == list(range(tiny.LEVELS))
    assert bundle.manifest.hash[:12] in out
    assert f"quality levels measured: {tiny.LEVELS}" in err


def test_export_of_a_network_without_bottleneck_is_one_file(
    capsys: pytest.CaptureFixture[str], tiny_camvid: Path, tmp_path: Path
) -> None:
    plain = tiny.experiment(model={"bottleneck": "none"}, schedule={"epochs": 1}, loss={"rate": (0.0,)})
    config, backbone = written(tmp_path / "plain.yaml", plain), tiny.backbone_weights(tmp_path / "backbone")
    words = ["--config", config, "--data", tiny_camvid, "--run", tmp_path / "run"]
    assert call(capsys, "train", *words, "--backbone", backbone)[0] == 0
    whole = tmp_path / "deep" / "whole.onnx"
    code, out, _ = call(capsys, "export", *words, "--whole", whole)
    assert code == 0
    assert f"{whole.stat().st_size} bytes" in out.replace("\n", " ")
    assert "has no bottleneck" in refusal(capsys, "export", *words, "--bundle", tmp_path / "b", "--licence", "x")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--run RUN --licence x", "export needs --bundle FOLDER and --licence TEXT"),
        ("--run RUN --bundle OUT/bundle", "export needs --bundle FOLDER and --licence TEXT"),
        ("--run OUT/none --bundle OUT/bundle --licence x", "none: no checkpoint.pt in it"),
        ("--run RUN --bundle OUT/bundle --licence x --measure-on nightly", "'nightly'"),
        ("--run OUT/none --whole OUT/whole.onnx", "none: no checkpoint.pt in it"),
        ("--run RUN --whole OUT/whole.onnx --bundle OUT/bundle --licence x", "not both at once"),
    ],
    ids=["no bundle", "no licence", "no run", "no split", "no whole", "both"],
)
def test_a_wrong_call_of_export_is_said_in_one_sentence_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    config: Path,
    tiny_camvid: Path,
    tiny_run: Path,
    tmp_path: Path,
    words: str,
    said: str,
) -> None:
    named = words.replace("RUN", str(tiny_run)).replace("OUT", str(tmp_path)).split()
    assert said in refusal(capsys, "export", "--config", config, "--data", tiny_camvid, *named)
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "whole.onnx").exists()


@pytest.mark.parametrize("missing", ["torch", "compressai"])
def test_what_training_needs_is_named_where_it_is_not_installed(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        training_commands.importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    found = refusal(capsys, "train", "--config", config, "--data", "d", "--run", "r")
    assert f"training needs {missing}; pip install 'maskcast[train]'" in found


def test_refining_says_what_was_fitted_and_measured(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Bundle, tiny_camvid: Path, tmp_path: Path
) -> None:
    words = ["--data", tiny_camvid, "--without-drive", "0006R0", "--measure-on", "test", "--output", tmp_path / "made"]
    code, out, err = call(capsys, "refine", "--bundle", tiny_bundle.path, *words)
    assert code == 0
    made = load_bundle(tmp_path / "made").manifest
    assert all(level.rate_bpp > 0 for level in made.quality_levels)
    assert made.dataset.endswith("measured on test")
    assert "quality levels fitted: 3" in err and "quality levels measured: 3" in err
    assert "lambda" in out
    assert "% of the pixels: left out" in out  # masks of a network that was hardly trained change at anything


def test_what_cannot_be_refined_is_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Bundle,
    tiny_camvid: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["refine", "--bundle", tiny_bundle.path, "--data", tiny_camvid, "--output", tmp_path / "made"]
    assert "no split or drive 'nights'" in refusal(capsys, *words, "--split", "nights")
    assert "no split or drive 'nights'" in refusal(capsys, *words, "--measure-on", "nights")
    assert not (tmp_path / "made").exists()
    with monkeypatch.context() as bare:
        bare.setattr(importlib.util, "find_spec", lambda name: None)
        assert "refine needs onnx; pip install onnx" in refusal(capsys, *words)


def test_resizing_says_what_was_fitted_and_measured_and_what_is_no_size(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Bundle, tiny_camvid: Path, tmp_path: Path
) -> None:
    plain = described(tiny_bundle, tmp_path / "plain")
    words = ["resize", "--bundle", plain, "--data", tiny_camvid, "--output", tmp_path / "made"]
    assert "size 640: expected width x height in pixels" in refusal(capsys, *words, "--size", "640")
    assert "size 100x64: width and height have to differ" in refusal(capsys, *words, "--size", "100x64")
    assert not (tmp_path / "made").exists()
    code, out, err = call(capsys, *words, "--size", "160x64", "--measure-on", "test")
    assert code == 0
    made = load_bundle(tmp_path / "made").manifest
    assert (made.width, made.height) == (160, 64)
    assert "fitting tables to" in err and "quality levels measured: 3" in err
    assert "160x64" in out
