"""What a camera node is made of, as its settings say: video, encoder, window, preview, rate control."""

from collections.abc import Callable
from functools import partial

from nodes.preview import Preview
from nodes.rate_control import RateControl
from nodes.uplinks import goes_over_webrtc
from nodes.window import Window
from pipeline.bandit import Bandit
from pipeline.bidirectional import open_stream_encoder
from pipeline.bundle import Bundle
from pipeline.choosing import Chooser, Ruled
from pipeline.config import CameraSection, CameraSettings, EncoderSection, PreviewSection, SceneSection, SourceSection
from pipeline.deciding import usual_bytes
from pipeline.errors import ConfigError
from pipeline.key_policies import key_policy
from pipeline.operating_points import CostModel, Ladder, points_of
from pipeline.rate_rule import DelayRule
from pipeline.scene import SceneGate, SimpleScenes
from pipeline.source_addresses import kind_of, shown
from pipeline.stream_encoder import StreamEncoder
from pipeline.transport import Channel
from pipeline.video import Video

_USUAL_FPS = 25.0  # of a source that does not tell
_MQTT_HEADER_BYTES, _WEBRTC_HEADER_BYTES = 70, 100  # of IP, TCP, MQTT; of IP, UDP, DTLS, SCTP and our chunks


def open_video(source: SourceSection, *, width: int, height: int) -> Video:
    """The video that the settings name, to be entered.

    ConfigError where one that is live should be a recording, SourceError where the address is of no known kind.
    """
    if source.fast and kind_of(source.url) in ("server", "device"):
        raise ConfigError(f"source.fast: {shown(source.url)} is live and comes at its own pace; leave out source.fast")
    return Video(
        source.url,
        width=width,
        height=height,
        loop=source.loop,
        fast=source.fast,
        fps=source.fps,
        max_fps=source.max_fps,
        start_s=source.start_s,
        rotate=source.rotate,
        mirror=source.mirror,
        noise_reduction=source.noise_reduction,
        timeout_s=source.timeout_s,
        retry_max_s=source.retry_max_s,
        decode_threads=source.decode_threads,
    )


def open_window(
    name: str, settings: CameraSection, source: SourceSection, *, bundle: Bundle, channel: Channel
) -> Window | None:
    """The window of a camera whose source, which `open_video` let pass, is played as a recording."""
    if not source.fast:
        return None
    return Window(
        name,
        channel,
        masks=bundle.has_graph("decode"),
        packets=settings.window_packets,
        answer_s=settings.answer_s,
        tries=settings.tries,
    )


def opening(bundle: Bundle, encoder: EncoderSection) -> Callable[[], StreamEncoder]:
    """What opens the encoder that the settings ask for."""
    return partial(
        open_stream_encoder,
        bundle,
        engine=encoder.engine,
        threads=encoder.threads,
        quality=encoder.quality,
        policy=key_policy(
            key_interval=encoder.key_interval,
            threshold=encoder.threshold if encoder.price is None else None,
            price=encoder.price,
        ),
        grid=encoder.grid,
        lookahead=encoder.lookahead,
    )


def room_for(camera: CameraSection, encoder: EncoderSection) -> int:
    """How many packets wait for the uplink at most: those that leave the encoder at once have to find room."""
    return camera.buffer_packets + encoder.lookahead


def open_preview(preview: PreviewSection) -> Preview | None:
    """The preview that the settings name, if it is on."""
    if not preview.enabled:
        return None
    return Preview(max_fps=preview.max_fps, max_width=preview.max_width, jpeg_quality=preview.jpeg_quality)


def shape_of(video: Video) -> tuple[int, int] | None:
    """Width and height of the source, once they are known."""
    return None if video.origin is None else (video.origin.width, video.origin.height)


def source_missing(video: Video) -> str | None:
    """Why there are no pictures now, if there are none."""
    if video.lost is not None:
        return f"waiting for the source: {video.lost}"
    return "waiting for the source" if video.origin is None else None


def open_rate(settings: CameraSettings, *, bundle: Bundle, video: Video) -> RateControl | None:
    """The rate control that the settings ask for, if any."""
    rate = settings.rate
    if not settings.rate_controlled:
        return None
    header_bytes = _WEBRTC_HEADER_BYTES if goes_over_webrtc(settings) else _MQTT_HEADER_BYTES
    rule = DelayRule(target_ms=rate.target_ms, start_kbit_s=rate.start_kbit_s)
    return RateControl(
        choosing(settings, bundle=bundle, header_bytes=header_bytes),
        quality=bundle.manifest.default_quality if settings.encoder.quality is None else settings.encoder.quality,
        rule=None if rate.mode == "off" else rule,
        max_kbit_s=rate.max_kbit_s,
        source_fps=lambda: (video.origin.fps if video.origin else None) or _USUAL_FPS,
        header_bytes=header_bytes,
    )


def choosing(settings: CameraSettings, *, bundle: Bundle, header_bytes: int) -> Callable[[int, float], Chooser]:
    """What makes a chooser for a highest level and a source's frames per second; what was learned of costs stays."""
    rate, encoder = settings.rate, settings.encoder
    costs = CostModel(bundle.manifest, header_bytes=header_bytes, longest_age=encoder.key_interval - 1)

    def choose(quality: int, fps: float) -> Chooser:
        most = encoder.threshold or 0.0
        points = points_of(bundle.manifest, fps=fps, max_quality=quality, max_threshold=most, min_fps=rate.min_fps)
        ladder = Ladder(points, costs)
        return Bandit(ladder) if rate.mode == "bandit" else Ruled(ladder)

    return choose


def open_gate(scene: SceneSection, source: SourceSection) -> SceneGate | None:
    """What tells whether a frame shows anything new, if it is wanted; every frame of a recording gets its mask."""
    return SceneGate(longest_s=scene.longest_s) if scene.drop_unchanged and not source.fast else None


def open_simple(scene: SceneSection, bundle: Bundle) -> SimpleScenes | None:
    """What lowers the level while a scene is simple, if wanted; ConfigError where the bundle lacks that level."""
    if scene.simple_quality is None:
        return None
    usual = {level.index: usual_bytes(bundle.manifest, level.index) for level in bundle.manifest.quality_levels}
    if scene.simple_quality not in usual:
        raise ConfigError(
            f"scene.simple_quality {scene.simple_quality}: bundle {bundle.manifest.name} has {sorted(usual)}"
        )
    return SimpleScenes(usual, quality=scene.simple_quality)
