"""The sections of the nodes' settings: what can be set, in which unit, within which limits."""

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from pipeline.messages import check_camera_name
from pipeline.zones import Zones

Engine = Literal["auto", "onnxruntime", "openvino"]
Port = Annotated[int, Field(ge=0, le=65535)]
CameraName = Annotated[str, AfterValidator(check_camera_name)]
NodeName = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9_.-]{0,62})?$")]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")]


def _split(value: object) -> object:
    """In the environment a list is one text."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


IceServers = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(stun|turns?):")], ...],
    NoDecode,
    BeforeValidator(_split),
    Field(max_length=8),
]

_ORIGIN = re.compile(r"(https?)://([a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_USUAL_PORTS = {"http": 80, "https": 443}


def _origin(text: str) -> str:
    """The origin as browsers say it, in lower case and without the port that is usual; raises ValueError."""
    parts = _ORIGIN.fullmatch(text.lower())
    host = _host(parts[2]) if parts else None
    port = int(parts[3] or _USUAL_PORTS[parts[1]]) if parts else 0
    if parts is None or host is None or not 0 < port < 1 << 16:
        raise ValueError(
            "that is no origin: write scheme, host and, where it is not the usual one, port, and nothing else, such as "
            "https://home.example or http://10.0.0.2:8123"
        )
    return f"{parts[1]}://{host}" + ("" if port == _USUAL_PORTS[parts[1]] else f":{port}")


def _host(host: str) -> str | None:
    """The host as browsers say it; what has brackets, or ends in a number, must be an address."""
    try:
        if host.startswith("["):
            return f"[{IPv6Address(host[1:-1])}]"
        return str(IPv4Address(host)) if host.rpartition(".")[2].isdecimal() else host
    except ValueError:
        return None


Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...],
    NoDecode,
    BeforeValidator(_split),
    Field(max_length=16),
]

# In the environment a number is a text, which a choice of numbers does not take.
Turn = Annotated[
    Literal[0, 90, 180, 270],
    BeforeValidator(lambda value: int(value) if isinstance(value, str) and value.isdecimal() else value),
]

# YAML reads an off without quotes as false.
Off = BeforeValidator(lambda value: "off" if value is False else value)


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    # A device is a number: `url: 0` is as good as `url: "0"`.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class LogSection(Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level written")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: coloured lines on a terminal, JSON elsewhere"
    )


class HealthSection(Section):
    host: str = Field("127.0.0.1", description="address that /healthz, /readyz and /metrics listen on")
    port: Port = Field(0, description="TCP port of that page; 0: none")


class MqttSection(Section):
    root: Topic = Field("maskcast", description="first part of every topic")


class WebRtcSection(Section):
    token: SecretStr | None = Field(
        None, description="what shows the gateway that this camera is the one it says; null: the gateway asks for none"
    )
    ice_servers: IceServers = Field(
        (), description="what helps through NAT, one of each: stun:host:port, turn:user:password@host:port"
    )
    relay_only: bool = Field(False, description="go through the turn: server only, where a network allows nothing else")
    fallback: bool = Field(False, description="use mqtt_url while the gateway cannot be reached over WebRTC")

    @model_validator(mode="after")
    def _relay_is_known(self) -> "WebRtcSection":
        if self.relay_only and not any(url.startswith("turn") for url in self.ice_servers):
            raise ValueError("relay_only needs a turn: server in ice_servers")
        return self


class WebRtcGatewaySection(Section):
    port: Port = Field(0, description="TCP port that cameras connect to over WebRTC; 0: none")
    host: str = Field("127.0.0.1", description="address it listens on; 0.0.0.0: all of this machine")
    tokens_file: Path | None = Field(
        None, description="file with a line `camera token` for each camera that may come; null: any may, without token"
    )
    ice_servers: IceServers = Field(
        (), description="what helps through NAT, one of each: stun:host:port, turn:user:password@host:port"
    )
    sessions: int = Field(64, ge=1, le=10_000, description="cameras that are connected over WebRTC at most")


class QueueSection(Section):
    shards: int = Field(16, ge=1, le=1024, description="streams the cameras are spread over, same on all nodes")
    shard_packets: int = Field(
        1000, ge=16, le=1_000_000, description="packets one shard holds at most; the oldest go first"
    )


class SourceSection(Section):
    url: str = Field(
        "sample",
        description="video file, directory of images, rtsp:// or another stream, device (/dev/video0 or 0), or: sample",
    )
    loop: bool = Field(False, description="begin a file or directory again at its end")
    fast: bool = Field(
        False, description="play a file or directory as a recording: every frame gets its mask, as fast as they come"
    )
    fps: float = Field(25.0, gt=0, le=1000, description="frames per second of a directory of images")
    max_fps: float | None = Field(
        None,
        ge=0.01,
        le=1000,
        description="frames per second taken of the source at most, unless it is fast; null: all",
    )
    start_s: float = Field(0.0, ge=0, description="seconds of a file or directory to pass over at the start")
    rotate: Turn = Field(0, description="degrees clockwise that pictures are turned by")
    mirror: bool = Field(False, description="swap left and right, after turning")
    noise_reduction: bool = Field(
        False, description="average over time what is at rest: masks flicker less, what is fainter than noise fades"
    )
    timeout_s: float = Field(5.0, gt=0, le=300, description="seconds a server may take to answer, or to send more")
    retry_max_s: float = Field(
        30.0, ge=0.1, le=3600, description="seconds at most before a lost live source is opened again"
    )
    decode_threads: int = Field(1, ge=1, le=64, description="threads that decode the video")


class CameraSection(Section):
    name: CameraName = Field("cam-1", description="name of this camera: a-z, 0-9, - and _")
    buffer_packets: int = Field(
        4,
        ge=1,
        le=1000,
        description="packets that wait for the uplink at most; the oldest that none refers to goes first",
    )
    window_packets: int = Field(
        32, ge=1, le=60, description="packets of a recording (source.fast) that are sent before their masks come"
    )
    answer_s: float = Field(5.0, gt=0, le=600, description="seconds without a mask until they are sent again, at first")
    tries: int = Field(5, ge=1, le=1000, description="times that they are sent again, after twice as long each time")
    zones: Annotated[Zones, NoDecode] = Field(
        {},
        description='parts of the picture to tell classes of, such as {"door": [[0.1, 0.4], [0.3, 0.4], [0.3, 1]]}: '
        "x and y of each corner, 0 to 1",
    )


class _EngineSection(Section):
    engine: Engine = Field("auto", description="auto: openvino where it is installed, else onnxruntime")
    threads: int = Field(0, ge=0, le=256, description="threads of the engine; 0: as many as it likes")


class EncoderSection(_EngineSection):
    quality: int | None = Field(
        None, ge=0, le=255, description="quality level of the bundle; null: the bundle's default level"
    )
    key_interval: int = Field(
        30,
        ge=1,
        le=256,
        description="frames from one KEY to the next at most, WARPs of it between; 1: every frame is a KEY",
    )
    threshold: float | None = Field(
        96.0,
        ge=0,
        le=100,
        description="a KEY sooner where a WARP should match in less than so many percent of the pixels; null: never",
    )
    price: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="percent of the pixels that 1000 bytes are worth, such as 8; then there is no threshold",
    )
    grid: str | None = Field(
        None,
        pattern=r"^[0-9]{1,2}x[0-9]{1,2}$",
        description="rows x columns of regions, such as 2x2, each KEY or WARP by itself; null: the bundle's own",
    )
    lookahead: int = Field(
        0,
        ge=0,
        le=30,
        description="frames that wait for the KEY after them and refer to it too: fewer bits, masks that much later",
    )

    @model_validator(mode="after")
    def _price_decides(self) -> "EncoderSection":
        if self.price is not None and self.key_interval == 1:
            raise ValueError("price is for frames between KEYs: leave it out, or set key_interval above 1")
        return self

    @model_validator(mode="after")
    def _frames_may_wait(self) -> "EncoderSection":
        rows, columns = map(int, (self.grid or "1x1").split("x"))
        if self.lookahead and rows * columns > 1:
            raise ValueError("lookahead is for whole frames: set it to 0, or grid to 1x1")
        if self.lookahead and self.key_interval == 1:
            raise ValueError("lookahead is for frames between KEYs: set it to 0, or key_interval above 1")
        return self


class RateSection(Section):
    mode: Annotated[Literal["off", "rule", "bandit"], Off] = Field(
        "off", description="off: as the encoder is set; rule: less where the link takes less; bandit: learns what pays"
    )
    max_kbit_s: float | None = Field(
        None, ge=10, le=1e6, description="kbit/s at most, headers counted in, with any mode; null: no limit"
    )
    min_fps: float = Field(5.0, ge=1, le=60, description="frames per second, fewer only where nothing else helps")
    target_ms: float = Field(100.0, ge=20, le=2000, description="ms that packets may queue up on the link")
    start_kbit_s: float = Field(200.0, ge=10, le=1e6, description="kbit/s until the gateway has told what arrives")


class SceneSection(Section):
    drop_unchanged: bool = Field(False, description="send no frame while nothing changes; the last mask stands")
    longest_s: float = Field(1.0, gt=0, le=60, description="seconds without a frame at most")
    simple_quality: int | None = Field(
        None, ge=0, le=255, description="quality level while KEYs take few bytes for theirs; null: the same as ever"
    )


class DecoderSection(_EngineSection):
    """How the decoder's network is run, and masks are made of what it says."""

    hysteresis: float = Field(
        0.0,
        ge=0,
        le=4,
        description="logits a class must lead by to take a pixel, against flicker: 0.5 for fixed cameras; 0: none",
    )


class PreviewSection(Section):
    enabled: bool = Field(False, description="publish small pictures too; off, since pixels stay at the edge")
    max_fps: float = Field(5.0, gt=0, le=60, description="pictures per second at most")
    max_width: int = Field(480, ge=16, le=4096, description="width in pixels at most")
    jpeg_quality: int = Field(60, ge=1, le=100, description="JPEG quality, 1 to 100")


class GatewaySection(Section):
    id: NodeName = Field("", description="name of this gateway, one of its kind; empty: made from host and process")
    buffer_packets: int = Field(
        256,
        ge=1,
        le=100_000,
        description="packets a sender holds while the queue is away; the oldest WARP goes first",
    )
    senders: int = Field(2, ge=1, le=64, description="packets under way to the queue at the same time")
    packet_bytes: int = Field(65_536, ge=1024, le=1 << 20, description="bytes of a packet at most; larger are refused")


class WorkerSection(Section):
    id: NodeName = Field("", description="name of this worker, one of its kind; empty: made from host and process")
    batch: int = Field(8, ge=1, le=256, description="packets decoded in one pass at most")
    wait_s: float = Field(1.0, gt=0, le=60, description="longest wait for a packet in one claim, in seconds")
    deadline_ms: int = Field(
        2000,
        ge=0,
        le=3_600_000,
        description="ms since capture after which a packet is passed over; 0: never",
    )
    rle: bool = Field(False, description="publish the compact form of each mask too, on <camera>/mask/rle")
    labels: Annotated[Literal["auto", "off"], Off] = Field(
        "auto", description="auto: publish which classes are in the picture, where the bundle can tell; off: never"
    )
    stats_s: float = Field(1.0, ge=0.1, le=60, description="seconds between two statistics of a camera")


class ViewerSection(Section):
    host: str = Field("127.0.0.1", description="address the page listens on; 0.0.0.0: all of this machine")
    port: Port = Field(8080, description="TCP port of the page; 0: any free port")
    browsers: int = Field(64, ge=1, le=10_000, description="browsers that may look on at the same time")
    origins: Origins = Field(
        (),
        description="sites that may frame this page or read its feed, and proxies' own: https://home.example; "
        "all may show pictures then",
    )


class DemoSection(Section):
    cameras: int = Field(2, ge=1, le=16, description="cameras that play the source, each a little different")
    open_page: bool = Field(True, description="open the page, if started from a desktop's terminal")
