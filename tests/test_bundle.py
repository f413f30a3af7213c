"""Bundles: found, checked against their hash, refused with one sentence."""

import json
import math
import shutil
from pathlib import Path

import coding
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.bundle import (
    MANIFEST,
    TABLES,
    content_files,
    content_hash,
    default_bundle,
    load_bundle,
    read_manifest,
    tables_from,
)
from pipeline.context import stored_context
from pipeline.errors import ConfigError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the default bundle that a test may spoil."""
    return Path(shutil.copytree(default_bundle(), tmp_path / "bundle"))


def rewrite_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_the_default_bundle_loads() -> None:
    bundle = load_bundle(default_bundle())
    assert bundle.id.hex() == bundle.manifest.hash[:8]
    assert bundle.palette.shape == (11, 3)
    height, width = bundle.manifest.height, bundle.manifest.width
    assert bundle.latent_size == (math.ceil(height / 16), math.ceil(width / 16))
    assert bundle.manifest.default_quality in [level.index for level in bundle.manifest.quality_levels]


def test_the_environment_names_the_default_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKCAST_BUNDLE", str(tmp_path))
    assert default_bundle() == tmp_path


@pytest.mark.parametrize("name", ["encode.onnx", "decode.onnx", TABLES])
def test_one_changed_byte_of_any_file_is_refused(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ConfigError, match="not those of the hash"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["encode.onnx", TABLES])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ConfigError, match=f"file '{name}' is missing"):
        load_bundle(copy)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no {MANIFEST}"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 7),
        ("grid", "0x1"),
        ("hash", "abc"),
        ("classes", []),
        ("quality_levels", []),
        ("classes", [{"name": "sky", "colour": [300, 0, 0]}]),
    ],
)
def test_a_wrong_field_of_the_manifest_is_named(copy: Path, field: str, value: object) -> None:
    rewrite_manifest(copy, **{field: value})
    with pytest.raises(ConfigError, match=field):
        load_bundle(copy)


def test_a_graph_outside_the_folder_is_refused(copy: Path) -> None:
    rewrite_manifest(copy, graphs={"encode": "../encode.onnx", "decode": "decode.onnx"})
    with pytest.raises(ConfigError, match="is missing"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cumulative", np.zeros((9, 9), np.uint32)),
        ("latent_0_spread", np.zeros((2, 1, 5, 1), np.int16)),
        ("latent_0_planes", np.array([3], np.int32)),
        ("scale_levels", np.array([0], np.int32)),
        ("weight_1", np.full((1, 600, 3, 3), 127, np.int8)),
        ("hyper_limit", np.array([0], np.int32)),
        ("rdoq_lambda", np.zeros(3, np.float32)),
        ("rdoq_lambda", np.zeros(7, np.float64)),
        ("rdoq_lambda", np.full(7, np.nan, np.float32)),
        ("rdoq_lambda", np.full(7, 1.5, np.float32)),
    ],
)
def test_tables_that_would_lead_the_coder_astray_are_refused(copy: Path, key: str, value: np.ndarray) -> None:
    save_file({**load_file(copy / TABLES), key: value}, copy / TABLES)
    rewrite_manifest(copy, hash=content_hash(copy, content_files(read_manifest(copy))))
    with pytest.raises(ConfigError, match="export the bundle again"):
        load_bundle(copy)


def test_tables_of_another_size_or_with_fewer_levels_than_the_manifest_are_refused(copy: Path) -> None:
    for changes in ({"height": 720}, {"quality_levels": [{"index": 255, "rate_bpp": 0, "miou": 0, "default": True}]}):
        rewrite_manifest(Path(shutil.copytree(default_bundle(), copy, dirs_exist_ok=True)), **changes)
        with pytest.raises(ConfigError, match="are not those of manifest"):
            load_bundle(copy)


@pytest.mark.parametrize("prior", [False, True])
def test_tables_survive_being_stored(prior: bool, tmp_path: Path) -> None:
    save_file(coding.stored_tables(prior=prior), tmp_path / TABLES)
    tables = tables_from(load_file(tmp_path / TABLES))
    assert (tables.levels, tables.latents) == (coding.LEVELS, coding.LATENTS)
    assert (tables.prior is not None, len(tables.hyper)) == (prior, coding.LEVELS * prior)
    assert [one.channels.size for one in tables.latent] == [4, 8, 12]
    assert tables.offsets.any() != prior


def test_a_level_may_have_no_channels_that_are_coded(tmp_path: Path) -> None:
    dead = coding.context(0, planes=coding.LATENTS, rows=coding.ROWS, live=0)
    save_file({**coding.stored_tables(prior=True), **stored_context(dead, "latent_0")}, tmp_path / TABLES)
    assert tables_from(load_file(tmp_path / TABLES)).latent[0].channels.size == 0


OTHER = {
    "more planes": coding.context(0, planes=coding.LATENTS + 1, rows=coding.ROWS),
    "more rows": coding.context(0, planes=coding.LATENTS, rows=coding.ROWS + 4),
}
DAMAGES = {
    "a level of another number of planes": (True, stored_context(OTHER["more planes"], "latent_1")),
    "a level of another number of rows": (True, stored_context(OTHER["more rows"], "latent_1")),
    "other planes than the prior's": (
        True, {k: v for i in range(3) for k, v in stored_context(OTHER["more planes"], f"latent_{i}").items()},
    ),
    "other rows than the hyper latent's": (
        True, {k: v for i in range(3) for k, v in stored_context(OTHER["more rows"], f"latent_{i}").items()},
    ),
    "a hyper context more than levels": (True, stored_context(coding.context(0, planes=4, rows=2), "hyper_3")),
    "a hyper limit of zero": (True, {"hyper_limit": np.zeros(1, np.int32)}),
    "a hyper limit of no number": (True, {"hyper_limit": np.zeros(0, np.int32)}),
    "a hyper limit that is not a number": (True, {"hyper_limit": np.array([np.nan])}),
    "a scale that no byte can name": (True, {"scale_levels": np.array([257], np.int32)}),
    "offsets of another type": (False, {"latent_offsets": np.zeros((coding.LEVELS, coding.LATENTS), np.float32)}),
    "offsets of another shape": (False, {"latent_offsets": np.zeros((1, coding.LATENTS), np.int16)}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_tables_that_do_not_fit_together_are_refused(damage: str) -> None:
    prior, arrays = DAMAGES[damage]
    with pytest.raises(ConfigError):
        tables_from({**coding.stored_tables(prior=prior), **arrays})


@pytest.mark.parametrize("name", ["hyper_limit", "scale_levels", "cumulative", "sizes", "latent_0_planes", "weight_1"])
def test_a_missing_array_of_the_tables_is_refused(name: str) -> None:
    stored = coding.stored_tables(prior=True)
    del stored[name]
    with pytest.raises(ConfigError):
        tables_from(stored)


def test_a_missing_graph_is_named(copy: Path) -> None:
    with pytest.raises(ConfigError, match="no graph 'depth'"):
        load_bundle(copy).graph("depth")
