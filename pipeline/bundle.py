"""A model as deployed: a folder of ONNX graphs, integer tables and a manifest, named by its content's hash."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pipeline.context import Context, load_context
from pipeline.errors import ConfigError
from pipeline.frequency_tables import MAX_SYMBOL, FrequencyTables, check_tables, sealed
from pipeline.integer_prior import IntegerPrior, load_prior

MANIFEST = "manifest.json"
TABLES = "tables.safetensors"
MAX_LEVELS = 256  # a packet names its level in one byte
MAX_SCALE_LEVELS = 256


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


Shade = Annotated[int, Field(ge=0, le=255)]


class ClassInfo(_Part):
    """One class and the colour (R, G, B) its pixels are drawn in."""

    name: str
    colour: tuple[Shade, Shade, Shade]


class QualityLevel(_Part):
    """One operating point: its rate, all overhead in, and its accuracy (0..1), both as measured at export."""

    index: int = Field(ge=0, le=255)
    rate_bpp: float
    miou: float
    default: bool


class Network(_Part):
    """What `maskcast adapt` needs to build the network again that the graphs were traced from."""

    model: dict[str, JsonValue]  # the section `model` of its experiment
    rate: tuple[float, ...] = Field(min_length=1)  # weight of one bit per pixel in training, by quality level
    from_cityscapes: tuple[int, ...]  # the class that each Cityscapes train id counts as; empty: not known


class Manifest(_Part):
    """What a bundle says of itself (docs/wire.md, section 5); its JSON travels on `bundle/<hash>`."""

    name: str
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_by: str
    dataset: str
    classes: tuple[ClassInfo, ...] = Field(min_length=1, max_length=255)
    width: int = Field(ge=16, le=4096)
    height: int = Field(ge=16, le=4096)
    grid: str = Field(pattern=r"^([1-9]|1[0-5])x([1-9]|1[0-5])$")
    quality_levels: tuple[QualityLevel, ...] = Field(min_length=1)
    graphs: dict[str, str]
    precision: str
    licence: str
    presence_share: float | None = Field(None, ge=0, le=1)  # pixels a class needs to be "in the picture", with labels
    smoothing: float | None = Field(None, gt=0, le=2)  # of the logits, as the decode graph does it: sigma in logits
    network: Network | None = None

    @property
    def default_quality(self) -> int:
        """Index of the default quality level (the first one if none is marked)."""
        return next((q.index for q in self.quality_levels if q.default), self.quality_levels[0].index)


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The integers that both ends code with; a bundle without a prior sends no hyper latent."""

    frequencies: FrequencyTables
    latent: tuple[Context, ...]  # one per quality level
    prior: IntegerPrior | None
    hyper: tuple[Context, ...]  # one per quality level, none without a prior
    hyper_limit: int  # largest |z| that is sent
    offsets: NDArray[np.int16]  # (levels, C) means of y in sixteenths, where no prior says them
    rdoq_lambda: tuple[float, ...]  # by level: what a bit weighs, in squared steps of y, where it is rounded

    @property
    def levels(self) -> int:
        """How many quality levels there are tables for."""
        return len(self.latent)

    @property
    def latents(self) -> int:
        """Channels C of the latent."""
        return self.latent[0].planes


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A loaded bundle: checked against its hash, its tables ready to code with."""

    path: Path
    manifest: Manifest
    tables: Tables

    @property
    def id(self) -> bytes:
        """The first 4 bytes of the hash: what a packet carries."""
        return bytes.fromhex(self.manifest.hash[:8])

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours (K, 3) by class index."""
        return np.array([c.colour for c in self.manifest.classes], np.uint8)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of the latent of one frame."""
        return -(-self.manifest.height // 16), -(-self.manifest.width // 16)

    def has_graph(self, name: str) -> bool:
        """Whether it has this graph: `decode` for masks, `labels` for what is in the picture, `outline` and `decide`
        for what a camera sends."""
        return name in self.manifest.graphs

    def graph(self, name: str) -> Path:
        """The file of one graph; ConfigError when the bundle has none of that name."""
        if name not in self.manifest.graphs:
            raise ConfigError(f"bundle {self.path}: it has no graph {name!r}; export it again")
        return self.path / self.manifest.graphs[name]


def load_bundle(path: Path) -> Bundle:
    """Read and check a bundle; ConfigError names the file that is missing, damaged or of another bundle."""
    manifest = read_manifest(path)
    files = content_files(manifest)
    for name in files:
        if Path(name).name != name or not (path / name).is_file():
            raise ConfigError(f"bundle {path}: file {name!r} is missing; copy or export the bundle again")
    if content_hash(path, files) != manifest.hash:
        raise ConfigError(f"bundle {path}: its files are not those of the hash in {MANIFEST}; copy it again")
    bundle = Bundle(path, manifest, _read_tables(path / TABLES))
    rows, levels = bundle.tables.latent[0].rows, bundle.tables.levels
    if rows != bundle.latent_size[0] or any(level.index >= levels for level in manifest.quality_levels):
        raise ConfigError(
            f"bundle {path}: {TABLES} has {levels} levels of {rows} rows, which are not those of {MANIFEST}; "
            "export the bundle again"
        )
    return bundle


def copy_content(bundle: Bundle, folder: Path) -> None:
    """Copy the files that the hash covers to a folder, new or not, which may be the bundle's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in content_files(bundle.manifest):
        if (bundle.path / name).resolve() != (folder / name).resolve():
            shutil.copyfile(bundle.path / name, folder / name)


def seal(manifest: Manifest, folder: Path) -> Bundle:
    """Write the manifest with the hash of the files that it names, which lie in the folder; the bundle they are."""
    sealed = manifest.model_copy(update={"hash": content_hash(folder, content_files(manifest))})
    (folder / MANIFEST).write_text(sealed.model_dump_json(indent=2) + "\n")
    return load_bundle(folder)


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest alone; ConfigError when it is missing or wrong."""
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except OSError as error:
        wrong = f"no {MANIFEST} in it" if path.is_dir() else "there is no such folder"
        raise ConfigError(f"bundle {path}: {wrong}; name a folder made by maskcast export") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"bundle {path}: {MANIFEST}: {field}: {first['msg']}; export it again") from error


def content_files(manifest: Manifest) -> list[str]:
    """The files whose bytes make up the hash."""
    return sorted([TABLES, *manifest.graphs.values()])


def content_hash(path: Path, files: list[str]) -> str:
    """SHA-256 over name, length and bytes of each file, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in files:
        content = (path / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def default_bundle() -> Path:
    """MASKCAST_BUNDLE, or the first bundle that lies in the checkout or the installed package."""
    named = os.environ.get("MASKCAST_BUNDLE")
    if named:
        return Path(named)
    here = Path(__file__).resolve().parent.parent
    for home in (here / "bundles", here / "maskcast_data" / "bundles"):
        found = sorted(manifest.parent for manifest in home.glob(f"*/{MANIFEST}"))
        if found:
            return found[0]
    raise ConfigError("no bundle found; name one with --bundle or MASKCAST_BUNDLE")


def _read_tables(path: Path) -> Tables:
    """ConfigError names the file and what is wrong in it."""
    try:
        return tables_from(load_file(path))
    except (SafetensorError, OSError, ConfigError) as error:
        raise ConfigError(f"bundle tables {path}: {error}; export the bundle again") from error


def tables_from(stored: Mapping[str, NDArray[np.generic]]) -> Tables:
    """Build the tables from their arrays; raises ConfigError where one is missing or they do not fit together."""
    limit = _number(stored, "hyper_limit", MAX_SYMBOL)
    latent, hyper = _contexts(stored, "latent"), _contexts(stored, "hyper")
    if not 1 <= len(latent) <= MAX_LEVELS:
        raise ConfigError(f"{len(latent)} quality levels, must be 1 to {MAX_LEVELS}")
    prior = None
    if hyper:
        prior = load_prior(stored, hyper_limit=limit, scale_levels=_number(stored, "scale_levels", MAX_SCALE_LEVELS))
        if (prior.latents, prior.hyper_latents, len(hyper)) != (latent[0].planes, hyper[0].planes, len(latent)):
            raise ConfigError("the contexts are not for the channels of the prior, or not for as many levels")
        if hyper[0].rows != -(-latent[0].rows // 4):
            raise ConfigError(f"contexts of {hyper[0].rows} hyper rows do not go with {latent[0].rows} rows")
    if not {"cumulative", "sizes"} <= stored.keys():
        raise ConfigError("cumulative or sizes is missing")
    frequencies = check_tables(stored["cumulative"], stored["sizes"])
    return Tables(frequencies, latent, prior, hyper, limit, _offsets(stored, latent), _rdoq_lambda(stored, len(latent)))


def _number(stored: Mapping[str, NDArray[np.generic]], name: str, largest: int) -> int:
    """The one number of an int32 array, 1 to `largest`."""
    array = stored.get(name, np.zeros(0))
    if array.shape != (1,) or array.dtype != np.int32 or not 1 <= int(array[0]) <= largest:
        raise ConfigError(f"{name} must be one int32 from 1 to {largest}")
    return int(array[0])


def _offsets(stored: Mapping[str, NDArray[np.generic]], latent: Sequence[Context]) -> NDArray[np.int16]:
    """The means of bundles without a prior, 0 where none are stored."""
    shape = (len(latent), latent[0].planes)
    offsets = stored.get("latent_offsets", np.zeros(shape, np.int16))
    if offsets.shape != shape or offsets.dtype != np.int16:
        raise ConfigError(f"latent_offsets must be int16 {shape}")
    return sealed(offsets, np.int16)


def _rdoq_lambda(stored: Mapping[str, NDArray[np.generic]], levels: int) -> tuple[float, ...]:
    """Of each level, 0 where none is stored."""
    lambdas = stored.get("rdoq_lambda", np.zeros(levels, np.float32))
    found = tuple(float(one) for one in lambdas.ravel())
    if lambdas.shape != (levels,) or lambdas.dtype != np.float32 or not all(0 <= one <= 1 for one in found):
        raise ConfigError(f"rdoq_lambda must be {levels} float32 from 0 to 1")
    return found


def _contexts(stored: Mapping[str, NDArray[np.generic]], name: str) -> tuple[Context, ...]:
    """The contexts `name`_0, `name`_1, ...; ConfigError unless all are for one size."""
    found: list[Context] = []
    while f"{name}_{len(found)}_planes" in stored:
        found.append(load_context(stored, f"{name}_{len(found)}"))
    if len({(one.planes, one.rows) for one in found}) > 1:
        raise ConfigError(f"{name} contexts are for different sizes")
    return tuple(found)
