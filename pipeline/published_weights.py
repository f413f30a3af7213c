"""Weights that others publish, as tensors by name: safetensors, or a file of PyTorch's own, of which no code is run."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.errors import ConfigError

_OLD_PICKLE = b"\x80\x02"  # what torch.save wrote before it wrote archives
_INSIDE = ("state_dict", "model")  # where a checkpoint that holds more than weights has them
_PREFIX = "module."  # of networks that learned on several GPUs


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; ConfigError, which does not say what the file is for, where it has none."""
    found = _stored(path)
    if not isinstance(found, Mapping) or not found or not all(isinstance(one, Tensor) for one in found.values()):
        raise ConfigError("it holds no tensors by name; save its state dict alone")
    return {str(name).removeprefix(_PREFIX): one for name, one in found.items()}


def _stored(path: Path) -> object:
    """What a file holds; of a checkpoint that holds more than weights, what stands where its weights should."""
    try:
        if not _is_torchs(path):
            return load(path.read_bytes())  # load_file would look at the file's name
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(str(error)) from error
    except SafetensorError as error:
        raise ConfigError("it is no file of weights (safetensors, or PyTorch's own), or is damaged") from error
    except Exception as error:  # damaged files raise all kinds
        raise ConfigError("it holds more than weights, or is damaged; save its state dict alone") from error
    return next((stored[name] for name in _INSIDE if isinstance(stored, Mapping) and name in stored), stored)


def _is_torchs(path: Path) -> bool:
    with path.open("rb") as opened:
        begins = opened.read(9)  # safetensors: how long its JSON is, in 8 bytes, and that
    return begins[8:] != b"{" and (begins.startswith(_OLD_PICKLE) or zipfile.is_zipfile(path))
