"""Settings of one training experiment: complete, checked and frozen; `configs/train/*.yaml` hold them."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(_Section):
    """The network: a name in MODELS and its sizes in channels."""

    name: str = Field(description="builder in pipeline.models.MODELS")
    latents: int = Field(ge=1, le=512, description="channels of the latent y")
    hyper_latents: int = Field(ge=1, le=128, description="channels of the hyper latent z")
    encoder_width: int = Field(ge=1, description="channels inside the source encoder")
    prior_width: int = Field(ge=1, le=48, description="channels inside the integer hyper decoder")
    decoder_width: int = Field(ge=4, multiple_of=2, description="channels of the joint decoder")
    branch: int = Field(ge=1, description="channels of each ASPP branch")
    dilations: tuple[int, ...] = Field(description="dilations of the ASPP branches, in latents")


class DataSettings(_Section):
    """What is trained on, and what is held out for choosing."""

    dataset: Literal["camvid"] = Field(description="layout of the data set")
    split: str = Field(description="train, val, trainval or a drive's name")
    without_drives: tuple[str, ...] = Field(description="drives taken out of the split, to choose by")
    choose_by: tuple[str, ...] = Field(description="splits or drives measured during training")
    crop: tuple[int, int] = Field(description="height and width of a training view, divisible by 16")
    scale: tuple[float, float] = Field(description="smallest and largest scale of a view")
    jitter: float = Field(ge=0, lt=1, description="change of light and colour, as a fraction")
    class_weighting: float = Field(gt=1, description="c in the class weight 1 / ln(c + share)")


class TeacherSettings(_Section):
    """The network whose soft labels are learned beside the labels."""

    size: tuple[int, int] = Field(description="width and height of the picture it is shown")
    weight: float = Field(ge=0, description="weight of the distillation term; 0: no teacher needed")


class ScheduleSettings(_Section):
    """Steps, rates and the weights of the loss."""

    seed: int
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    backbone_lr: float = Field(gt=0, description="peak learning rate of the pretrained backbone")
    lr: float = Field(gt=0, description="peak learning rate of everything else")
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    clip_norm: float = Field(gt=0, description="largest gradient norm; a larger one is scaled down")
    average_decay: float = Field(ge=0, lt=1, description="decay of the moving average of the weights")
    label_weight: float = Field(ge=0, description="weight of the labels' cross entropy")
    rate_weight: float = Field(ge=0, description="lambda: weight of one bit per pixel")
    measure_every: int = Field(ge=1, description="epochs between two measurements on choose_by")


class Experiment(_Section):
    """One experiment: everything `maskcast train` needs besides the folders it reads and writes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    model: ModelSettings
    data: DataSettings
    teacher: TeacherSettings
    schedule: ScheduleSettings


def load_experiment(path: Path) -> Experiment:
    """Read one experiment; ConfigError names the file and the key that is wrong."""
    try:
        return Experiment.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"experiment {path}: cannot be read; name a file of configs/train/") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"experiment {path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"experiment {path}: {key}: {first['msg']}") from error
