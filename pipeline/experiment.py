"""Settings of one training experiment: complete, checked and frozen; `configs/train/*.yaml` hold them."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(_Section):
    """The network: its parts by name, and their sizes in channels."""

    backbone: str = Field(description="image encoder, a name in pipeline.models.assembly.BACKBONES")
    decoder: str = Field(description="what is made of the latents, and how: one of pipeline.models.assembly.DECODERS")
    bottleneck: Literal["hyperprior", "none"] = Field(description="how latents are coded; none: not at all")
    latents: int = Field(ge=1, le=512, description="channels of the latent y")
    hyper_latents: int = Field(ge=1, le=128, description="channels of the hyper latent z")
    encoder_width: int = Field(ge=1, description="channels inside the source encoder")
    prior_width: int = Field(ge=1, le=48, description="channels inside the integer hyper decoder")
    decoder_width: int = Field(ge=4, multiple_of=2, description="channels of the decoder")
    branch: int = Field(ge=1, description="channels of each ASPP branch")
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field(description="dilations of the ASPP branches, in latents")
    over_parameters: int = Field(ge=0, le=8, description="K: parallel copies of each ASPP convolution in training")


def _rising(scales: tuple[float, float]) -> tuple[float, float]:
    if scales[0] > scales[1]:
        raise ValueError(f"the smallest comes first, but {scales[0]} is above {scales[1]}")
    return scales


def _falling(weights: tuple[float, ...]) -> tuple[float, ...]:
    for lower, higher in pairwise(weights):
        if lower < higher:
            raise ValueError(f"level 0 is the cheapest and weighs most, but {lower} comes before {higher}")
    return weights


_Side = Annotated[int, Field(ge=16, multiple_of=16)]
_Scale = Annotated[float, Field(gt=0)]
_Weight = Annotated[float, Field(ge=0)]
_Scales = Annotated[tuple[_Scale, _Scale], AfterValidator(_rising)]
_Weights = Annotated[tuple[_Weight, ...], Field(min_length=1), AfterValidator(_falling)]


class DataSettings(_Section):
    """What is trained on, and what is held out for choosing."""

    dataset: Literal["camvid", "cityscapes", "coco"] = Field(description="layout of the data set")
    split: str = Field(description="train, val, trainval or a drive's name")
    without_drives: tuple[str, ...] = Field(description="drives taken out of the split, to choose by")
    choose_by: tuple[str, ...] = Field(description="splits or drives measured during training")
    size: tuple[_Side, _Side] | None = Field(
        default=None,
        description="height and width of the network's frames; without it, their own, on disk those of the layout",
    )
    crop: tuple[_Side, _Side] = Field(description="height and width of a training view, divisible by 16")
    scale: _Scales = Field(description="smallest and largest scale of a view; at 1 frames have the size above")
    jitter: float = Field(ge=0, lt=1, description="change of light and colour, as a fraction")
    class_weighting: float = Field(gt=1, description="c in the class weight 1 / ln(c + share)")
    balanced: float = Field(ge=0, le=1, description="share of views centred on a pixel of a class drawn evenly")
    texture: float = Field(ge=0, le=1, description="strength of changes as by another lens: blur, noise, uneven light")
    mixed: float = Field(ge=0, le=1, description="share of views in which half of the classes lie before another view")
    unlabelled: float = Field(ge=0, le=1, description="share of a batch taken from frames without labels")


class TeacherSettings(_Section):
    """The networks whose soft labels are learned, beside the labels or instead of them."""

    size: tuple[int, int] = Field(description="width and height of the picture they are shown")
    scales: tuple[float, ...] = Field(min_length=1, description="sizes they are shown, as multiples of `size`")
    mirrored: bool = Field(description="whether they see each picture mirrored too")
    acquaintance: float = Field(ge=0, le=1, description="share of their batch statistics taken from our frames")
    translated: bool = Field(
        default=False, description="whether what they say of frames with labels is put into the labels' words"
    )
    sharpness: float = Field(gt=0, description="power that the teachers' probabilities are raised to; 1: as they are")
    weight: float = Field(ge=0, description="weight of the distillation term; 0: no teacher needed")
    lovasz: float = Field(
        default=0.0, ge=0, description="weight of the Lovasz term with the teachers' likeliest classes"
    )

    @model_validator(mode="after")
    def _taught(self) -> "TeacherSettings":
        if self.lovasz > 0 and self.weight == 0:
            raise ValueError(f"lovasz is {self.lovasz}, but weight 0: there is no teacher")
        if self.translated and self.weight == 0:
            raise ValueError("translated is true, but weight 0: there is no teacher")
        return self


class LossSettings(_Section):
    """Weights of the loss's terms."""

    labels: float = Field(ge=0, description="weight of the labels' cross entropy; 0: the labels are not looked at")
    lovasz: float = Field(ge=0, description="weight of the Lovasz softmax term, a surrogate of mIoU")
    pixels: float = Field(
        default=0.0,
        ge=0,
        description="weight of the squared error, in grey levels, over its level's rate; for model.decoder image",
    )
    rate: _Weights = Field(
        description="lambda, the weight of one bit per pixel, by level; it never rises; image codecs divide by it"
    )

    @property
    def levels(self) -> int:
        """Quality levels, level 0 first: the one with the highest weight of the rate."""
        return len(self.rate)


class ScheduleSettings(_Section):
    """Steps and learning rates."""

    seed: int = Field(ge=0)
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    backbone_lr: float = Field(
        gt=0, description="peak learning rate of what is pretrained, or of an image codec's transforms"
    )
    lr: float = Field(gt=0, description="peak learning rate of everything else")
    warmup_steps: int = Field(ge=0)
    rate_warmup: float = Field(ge=0, le=1, description="share of the steps over which the rate's weight rises")
    weight_decay: float = Field(ge=0)
    clip_norm: float = Field(gt=0, description="largest gradient norm; a larger one is scaled down")
    average_decay: float = Field(ge=0, lt=1, description="decay of the moving average of the weights")
    measure_every: int = Field(ge=1, description="epochs between two measurements on choose_by")
    trained: Literal["all", "decoder"] = Field(description="decoder: camera and entropy model stay as they begin")


class Experiment(_Section):
    """One experiment: everything `maskcast train` needs besides the folders it reads and writes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    model: ModelSettings
    data: DataSettings
    teacher: TeacherSettings
    loss: LossSettings
    schedule: ScheduleSettings
    smoothing: float = Field(0, ge=0, le=2, description="sigma that export smooths logits with, in logits of 4 pixels")

    @model_validator(mode="after")
    def _image_codec(self) -> "Experiment":
        """An image codec learns from pictures, and from nothing else."""
        if (self.model.decoder == "image") != (self.loss.pixels > 0):
            raise ValueError("loss.pixels is for model.decoder image, and above 0 there")
        if self.loss.pixels == 0:
            return self
        for setting, other in (
            ("loss.labels", self.loss.labels),
            ("loss.lovasz", self.loss.lovasz),
            ("teacher.weight", self.teacher.weight),
            ("data.balanced", self.data.balanced),
            ("data.mixed", self.data.mixed),
        ):
            if other > 0:
                raise ValueError(f"model.decoder image knows no classes, but {setting} is {other}; set it to 0")
        if self.loss.rate[-1] == 0:
            raise ValueError("loss.rate is what errors are divided by; set it above 0 at each level")
        if self.model.bottleneck == "none" or self.schedule.trained == "decoder":
            raise ValueError(
                "model.decoder image is how a camera learns to code; set bottleneck hyperprior, trained all"
            )
        return self

    def with_seed(self, seed: int) -> "Experiment":
        """The same, repeated with other chances."""
        return self.model_copy(update={"schedule": self.schedule.model_copy(update={"seed": seed})})


class LabelSchedule(_Section):
    """Steps and learning rate of a label decoder."""

    seed: int = Field(ge=0)
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0, description="peak learning rate")
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    clip_norm: float = Field(gt=0, description="largest gradient norm; a larger one is scaled down")


class LabelExperiment(_Section):
    """One experiment of `maskcast train-labels`: everything it needs besides the folders it reads and writes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    network: str = Field(description="file beside this one: the experiment of the network whose latents are labelled")
    width: int = Field(ge=1, description="channels of the label decoder")
    least_share: float = Field(gt=0, lt=1, description="share of the pixels that a class in the picture has at least")
    places: float = Field(ge=0, description="weight of the classes' shares of each place, beside their presence")
    data: DataSettings
    schedule: LabelSchedule


class Street(_Section):
    """A rendered video to learn from."""

    seed: int = Field(ge=0)
    frames: int = Field(ge=2)
    fps: float = Field(gt=0, description="fewer: more motion from frame to frame")
    light: float = Field(gt=0, description="brightness, as a multiple of the usual")


class Approaches(_Section):
    """Videos made of single pictures, as of a camera that comes nearer: of streets that no video shows."""

    pictures: int = Field(ge=1, description="of each folder, at most")
    frames: int = Field(ge=2, description="of each video")
    fastest: float = Field(ge=0, lt=0.2, description="growth from frame to frame, at most")
    noise: float = Field(ge=0, description="grey levels of a frame's own noise, at most; that of a lens and its chip")


class DecideSamples(_Section):
    """What a decision network is shown of each video: warps of keys at random frames."""

    keys: int = Field(ge=1, description="keys in each video")
    longest_age: int = Field(ge=1, le=255, description="frames after its key that a warp has at most")
    share: float = Field(gt=0, le=1, description="of the frames after a key that are learned from")
    steps: int = Field(ge=1, description="frames of the video, at most, from one that the camera takes to the next")
    fresh: int = Field(ge=0, description="cheaper levels that the key's own frame is looked at, at most")
    cheaper: float = Field(ge=0, le=1, description="share of keys whose level is below that of the fresh masks")


class DecideSchedule(_Section):
    """Steps and learning rate of a decision network."""

    seed: int = Field(ge=0)
    epochs: int = Field(ge=1)
    batch: int = Field(ge=2)
    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(ge=0)


class OutlineSettings(_Section):
    """What says where a mask has edges, and how long it is trained."""

    width: int = Field(ge=1, description="channels of the network")
    frames: int = Field(ge=1, description="frames of each video that are learned from, at most")
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(ge=0)


class DecideExperiment(_Section):
    """One experiment of `maskcast train-decide`: everything it needs besides bundle and videos."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    outline: OutlineSettings
    width: int = Field(ge=1, description="channels of a decision network")
    members: int = Field(default=1, ge=1, le=16, description="decision networks whose mean answer counts")
    streets: tuple[Street, ...] = Field(description="rendered videos, beside those that are named")
    rendered: float = Field(default=1.0, gt=0, description="what one of those weighs, where a real one weighs 1")
    approaches: Approaches | None = Field(default=None, description="videos made of the pictures that are named")
    samples: DecideSamples
    schedule: DecideSchedule


S = TypeVar("S", bound=_Section)


def load_experiment(path: Path) -> Experiment:
    """Read one experiment; ConfigError names the file and the key that is wrong."""
    return _load(path, Experiment)


def load_label_experiment(path: Path) -> LabelExperiment:
    """Read the experiment of a label decoder; ConfigError names the file and the key that is wrong."""
    return _load(path, LabelExperiment)


def load_decide_experiment(path: Path) -> DecideExperiment:
    """Read the experiment of a decision network; ConfigError names the file and the key that is wrong."""
    return _load(path, DecideExperiment)


def _load(path: Path, kind: type[S]) -> S:
    try:
        return kind.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"experiment {path}: cannot be read; name a file of configs/train/") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"experiment {path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise ConfigError(f"experiment {path}: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    """The key that is wrong, and what is wrong with it."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}"
