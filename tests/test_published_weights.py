"""Weights as they are published: both kinds of file, what checkpoints hold beside, files that are none."""

import random
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.published_weights import read_weights

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_safetensors_are_read_whatever_their_name(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        save_file(STATE, tmp_path / name)
        assert same(read_weights(tmp_path / name))


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before there were archives"])
@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
def test_files_of_pytorch_are_read_whatever_else_they_hold(tmp_path: Path, inside: str | None, archive: bool) -> None:
    content = STATE if inside is None else {"epoch": 3, inside: STATE, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    assert same(read_weights(tmp_path / "a.pth"))


def test_names_of_several_gpus_are_those_of_one(tmp_path: Path) -> None:
    torch.save({f"module.{name}": one for name, one in STATE.items()}, tmp_path / "a.pth")
    assert same(read_weights(tmp_path / "a.pth"))


class Harmful:
    """Would write a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "more": Harmful(tmp_path / "mark")}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="holds more than weights, or is damaged; save its state dict alone"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "mark").exists()


NO_TENSORS = "^it holds no tensors by name; save its state dict alone$"


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), {"lr": 0.1}, {"state_dict": 3}, {"state_dict": {}, "epoch": 3}, {}],
    ids=["tensor", "none", "number", "empty", "nothing"],
)
def test_a_file_without_tensors_by_name_says_so(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=NO_TENSORS):
        read_weights(tmp_path / "a.pth")


def test_safetensors_without_tensors_say_so(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=NO_TENSORS):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kept", [0, 1, 2, 40, -30])
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before there were archives"])
def test_a_file_that_is_cut_is_told_in_one_line(tmp_path: Path, kept: int, archive: bool) -> None:
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:kept])
    with pytest.raises(ConfigError) as caught:
        read_weights(tmp_path / "a.pth")
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before there were archives"])
def test_a_damaged_file_is_told_or_read(tmp_path: Path, archive: bool) -> None:
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    whole, rng = (tmp_path / "a.pth").read_bytes(), random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "a.pth").write_bytes(damaged)
        with suppress(ConfigError):
            read_weights(tmp_path / "a.pth")


def test_safetensors_whose_length_looks_like_a_pickle_are_known_for_what_they_are(tmp_path: Path) -> None:
    made = (save({"a": torch.ones(2)}, {"note": "x" * size}) for size in range(400, 800))
    (tmp_path / "a.pth").write_bytes(next(one for one in made if one.startswith(b"\x80\x02")))
    assert torch.equal(read_weights(tmp_path / "a.pth")["a"], torch.ones(2))


def test_a_picture_is_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ConfigError, match=r"^it is no file of weights .*, or is damaged$"):
        read_weights(tmp_path / "a.png")


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*none\.pth"):
        read_weights(tmp_path / "none.pth")
