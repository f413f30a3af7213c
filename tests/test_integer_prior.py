"""The integer prior: the same integers on every machine, and no table that could make them differ."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import BitstreamError, ConfigError
from pipeline.integer_prior import IntegerPrior, Prediction, check_hyper, load_prior

ROOT = Path(__file__).parent.parent
LATENTS, HYPER, WIDTH, LIMIT, LEVELS = 24, 8, 12, 63, 64
SIZES = [(4, 6), (23, 30), (1, 1), (5, 3), (2, 9)]

Tables = dict[str, NDArray[np.generic]]


def made_up_tables(seed: int = 0) -> Tables:
    """Weights over all of their range, biases that keep many activations between their ends."""
    rng = np.random.default_rng(seed)
    shapes = [(4 * WIDTH, HYPER, 3, 3), (4 * WIDTH, WIDTH, 3, 3), (2 * LATENTS, WIDTH, 1, 1)]
    tables: Tables = {}
    for i, shape in enumerate(shapes):
        tables[f"weight_{i}"] = rng.integers(-127, 128, shape).astype(np.int8)
        tables[f"bias_{i}"] = rng.integers(-9000, 20000, shape[0]).astype(np.int32)
    return tables


def made_up_prior(seed: int = 0) -> IntegerPrior:
    return load_prior(made_up_tables(seed), hyper_limit=LIMIT, scale_levels=LEVELS)


def hyper_latent(size: tuple[int, int], seed: int = 0) -> NDArray[np.int16]:
    shape = (HYPER, -(-size[0] // 4), -(-size[1] // 4))
    return np.random.default_rng(seed).integers(-LIMIT, LIMIT + 1, shape).astype(np.int16)


def whole_number_layer(x: NDArray[np.int64], weight: NDArray[np.int8], bias: NDArray[np.int32]) -> NDArray[np.int64]:
    """One layer by sums of int64, taken in another order: (C_in, h, w) -> (C_out, h, w)."""
    reach = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    height, width = x.shape[1:]
    total = np.zeros((len(weight), height, width), np.int64)
    for i in reversed(range(weight.shape[2])):
        for j in reversed(range(weight.shape[3])):
            seen = padded[:, i : i + height, j : j + width]
            total += np.einsum("oc,chw->ohw", weight[:, :, i, j].astype(np.int64), seen)
    return (total + bias[:, None, None] + 64) // 128


def doubled(x: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Channel 4c + 2i + j of (4C, h, w) fills the pixels (2y + i, 2x + j) of channel c."""
    out = np.zeros((len(x) // 4, 2 * x.shape[1], 2 * x.shape[2]), np.int64)
    for i in range(2):
        for j in range(2):
            out[:, i::2, j::2] = x[2 * i + j :: 4].clip(0, 255)
    return out[:, : size[0], : size[1]]


def by_whole_numbers(tables: Tables, z: NDArray[np.int16], size: tuple[int, int]) -> Prediction:
    half = (-(-size[0] // 2), -(-size[1] // 2))
    x = doubled(whole_number_layer(z.astype(np.int64), tables["weight_0"], tables["bias_0"]), half)
    x = doubled(whole_number_layer(x, tables["weight_1"], tables["bias_1"]), size)
    means, indexes = np.split(whole_number_layer(x, tables["weight_2"], tables["bias_2"]), 2)
    return Prediction((means / 16).astype(np.float32), indexes.clip(0, LEVELS - 1).astype(np.uint8))


def assert_same(a: Prediction, b: Prediction) -> None:
    assert np.array_equal(a.indexes, b.indexes)
    assert np.array_equal(a.means, b.means)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float_sums_equal_whole_number_sums_in_another_order(size: tuple[int, int]) -> None:
    z = hyper_latent(size)
    predicted = made_up_prior().predict(z, size)
    assert predicted.means.shape == predicted.indexes.shape == (LATENTS, *size)
    assert_same(predicted, by_whole_numbers(made_up_tables(), z, size))


def test_made_up_weights_reach_many_scales() -> None:
    indexes = made_up_prior().predict(hyper_latent((23, 30)), (23, 30)).indexes
    assert indexes.min() == 0
    assert indexes.max() == LEVELS - 1
    assert len(np.unique(indexes)) > LEVELS // 2


def test_order_of_the_channels_does_not_change_the_result() -> None:
    tables, order = made_up_tables(), np.random.default_rng(5).permutation(HYPER)
    permuted = {**tables, "weight_0": tables["weight_0"][:, order]}
    z = hyper_latent((23, 30))
    prior = load_prior(permuted, hyper_limit=LIMIT, scale_levels=LEVELS)
    assert_same(prior.predict(z[order], (23, 30)), made_up_prior().predict(z, (23, 30)))


SCRIPT = """
import hashlib, sys
sys.path.insert(0, "tests")
from test_integer_prior import digest
print(digest())
"""


def digest() -> str:
    """Of all integers that a prior gives for some frames."""
    found = hashlib.sha256()
    for size in SIZES:
        predicted = made_up_prior().predict(hyper_latent(size), size)
        found.update(predicted.indexes.tobytes() + predicted.means.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    "machine",
    [
        {"OPENBLAS_NUM_THREADS": "1"},
        {"OPENBLAS_NUM_THREADS": "3"},
        # Matrix products as older processors run them: other vector widths, other orders, no fused multiply-add.
        {"OPENBLAS_CORETYPE": "Prescott"},
        {"OPENBLAS_CORETYPE": "Haswell"},
    ],
    ids=lambda machine: "-".join(machine.values()),
)
def test_other_threads_and_processors_find_the_same_integers(machine: dict[str, str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **machine}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == digest()


def test_means_are_sixteenths_and_indexes_name_scales() -> None:
    predicted = made_up_prior().predict(hyper_latent((4, 6)), (4, 6))
    assert predicted.means.dtype == np.float32
    assert predicted.indexes.dtype == np.uint8
    assert np.array_equal(predicted.means * 16, np.round(predicted.means * 16))


def test_prior_knows_its_latents() -> None:
    assert made_up_prior().latents == LATENTS


def complaint(tables: Tables, hyper_limit: int = LIMIT) -> str:
    with pytest.raises(ConfigError) as caught:
        load_prior(tables, hyper_limit=hyper_limit, scale_levels=LEVELS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [f"{kind}_{i}" for kind in ("weight", "bias") for i in range(3)])
def test_missing_array_is_named(name: str) -> None:
    tables = made_up_tables()
    del tables[name]
    assert name in complaint(tables)


@pytest.mark.parametrize(
    ("name", "shape", "layer"),
    [
        ("weight_0", (4 * WIDTH, HYPER, 9), 0),
        ("weight_0", (4 * WIDTH, HYPER, 5, 5), 0),
        ("bias_1", (4 * WIDTH - 1,), 1),
        ("bias_2", (2 * LATENTS, 1), 2),
        ("weight_1", (4 * WIDTH, WIDTH + 1, 3, 3), 1),
        ("weight_2", (2 * LATENTS, 2 * WIDTH, 1, 1), 2),
    ],
)
def test_misshapen_layer_is_named(name: str, shape: tuple[int, ...], layer: int) -> None:
    tables = made_up_tables()
    tables[name] = np.zeros(shape, tables[name].dtype)
    assert f"layer {layer}" in complaint(tables)


@pytest.mark.parametrize(("name", "dtype"), [("weight_0", np.int64), ("weight_2", np.float32), ("bias_1", np.int64)])
def test_a_layer_of_another_type_is_named(name: str, dtype: type[np.generic]) -> None:
    """Their sums might pass 64 bits, where they cannot be checked."""
    tables = made_up_tables()
    tables[name] = tables[name].astype(dtype)
    assert "types" in complaint(tables)


@pytest.mark.parametrize(("layer", "outputs"), [(0, 4 * WIDTH + 2), (2, 2 * LATENTS + 1)])
def test_layer_whose_channels_cannot_be_split_is_named(layer: int, outputs: int) -> None:
    tables = made_up_tables()
    weight = tables[f"weight_{layer}"]
    tables[f"weight_{layer}"] = np.zeros((outputs, *weight.shape[1:]), np.int8)
    tables[f"bias_{layer}"] = np.zeros(outputs, np.int32)
    assert f"layer {layer}" in complaint(tables)


def test_sums_that_may_reach_two_to_the_24_are_rejected() -> None:
    """One output of layer 1 is driven to 2**24 - 1, which is exact, and then one further."""
    tables = made_up_tables()
    weight = np.zeros((4 * WIDTH, WIDTH, 3, 3), np.int8)
    weight[0] = 127
    bias = np.zeros(4 * WIDTH, np.int32)
    bias[0] = (1 << 24) - 1 - 64 - 127 * 9 * WIDTH * 255  # 64 is for rounding
    tables.update(weight_1=weight, bias_1=bias)
    load_prior(tables, hyper_limit=LIMIT, scale_levels=LEVELS)
    bias[0] += 1
    assert "layer 1" in complaint(tables)
    bias[0] *= -1
    assert "2**24" in complaint(tables)


def test_largest_hyper_latent_counts_towards_the_sums_of_the_first_layer() -> None:
    assert "layer 0" in complaint(made_up_tables(), hyper_limit=(1 << 15) - 1)


def test_hyper_latents_up_to_the_limit_pass() -> None:
    check_hyper(np.array([-LIMIT, 0, LIMIT], np.int16), LIMIT)
    check_hyper(np.zeros((0, 2, 2), np.int16), LIMIT)


@pytest.mark.parametrize("value", [LIMIT + 1, -LIMIT - 1, (1 << 15) - 1, -(1 << 15)])
def test_hyper_latent_beyond_the_limit_is_rejected(value: int) -> None:
    with pytest.raises(BitstreamError, match=str(abs(value))):
        check_hyper(np.array([0, value, 1], np.int16), LIMIT)
