"""A model as deployed: a folder of ONNX graphs, integer tables and a manifest, named by its content's hash."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pipeline.entropy import FrequencyTables, check_tables
from pipeline.errors import ConfigError
from pipeline.integer_prior import IntegerPrior, load_prior

MANIFEST = "manifest.json"
TABLES = "tables.safetensors"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ClassInfo(_Part):
    """One class and the colour (R, G, B) its pixels are drawn in."""

    name: str
    colour: tuple[int, int, int]


class QualityLevel(_Part):
    """One operating point: its rate, all overhead in, and its accuracy (0..1), both as measured at export."""

    index: int = Field(ge=0, le=255)
    rate_bpp: float
    miou: float
    default: bool


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

    @property
    def default_quality(self) -> int:
        """Index of the default quality level (the first one if none is marked)."""
        return next((q.index for q in self.quality_levels if q.default), self.quality_levels[0].index)


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The integers that both ends code with."""

    prior: IntegerPrior
    latent: FrequencyTables  # one table per scale index
    hyper: FrequencyTables  # one table per channel of z
    hyper_limit: int  # largest |z| that is sent
    scales: NDArray[np.float64]  # standard deviation by scale index; to estimate rates, not to code with


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
    return Bundle(path, manifest, _read_tables(path / TABLES))


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest alone; ConfigError when it is missing or wrong."""
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except OSError as error:
        raise ConfigError(f"bundle {path}: no {MANIFEST} in it; name a folder made by maskcast export") from error
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
        stored = load_file(path)
        limit = int(stored["hyper_limit"][0])
        if not 1 <= limit < 1 << 15:
            raise ConfigError(f"hyper_limit {limit} is out of range")
        latent = check_tables(stored["latent_cumulative"], stored["latent_sizes"], stored["latent_offsets"])
        hyper = check_tables(stored["hyper_cumulative"], stored["hyper_sizes"], stored["hyper_offsets"])
        prior = load_prior(stored, hyper_limit=limit, scale_levels=len(latent.sizes))
        if len(hyper.sizes) != prior.hyper_latents:
            raise ConfigError(f"{len(hyper.sizes)} hyper tables for {prior.hyper_latents} channels")
        return Tables(prior, latent, hyper, limit, stored["latent_scales"])
    except (KeyError, SafetensorError, OSError, ConfigError) as error:
        raise ConfigError(f"bundle tables {path}: {error}; export the bundle again") from error
