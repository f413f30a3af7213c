"""Bundles: found, checked against their hash, refused with one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.bundle import MANIFEST, TABLES, content_files, content_hash, default_bundle, load_bundle, read_manifest
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
    assert bundle.latent_size == (23, 30)
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
    ("field", "value"), [("width", 7), ("grid", "0x1"), ("hash", "abc"), ("classes", []), ("quality_levels", [])]
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
        ("latent_cumulative", np.zeros((64, 9), np.uint32)),
        ("weight_1", np.full((1, 600, 3, 3), 127, np.int8)),
        ("hyper_limit", np.array([0], np.int32)),
    ],
)
def test_tables_that_would_lead_the_coder_astray_are_refused(copy: Path, key: str, value: np.ndarray) -> None:
    save_file({**load_file(copy / TABLES), key: value}, copy / TABLES)
    rewrite_manifest(copy, hash=content_hash(copy, content_files(read_manifest(copy))))
    with pytest.raises(ConfigError, match="export the bundle again"):
        load_bundle(copy)


def test_a_missing_graph_is_named(copy: Path) -> None:
    with pytest.raises(ConfigError, match="no graph 'decide'"):
        load_bundle(copy).graph("decide")
