"""Frame to packet on the camera, packet to mask on the worker: two halves that face each other.

Encoder   image -> [encode graph] -> y, z -> round z -> integer prior -> round y - mean -> coder -> KEY region
Decoder   KEY region -> coder -> z -> integer prior -> coder -> y_hat -> [decode graph] -> logits -> class map
                                                                    +--> [labels graph] -> scores
          WARP region -> coder -> flow -> [warp of its key's logits] -> logits -> class map

Bundles without a prior have no z; y is rounded as it is. The WARP regions are made in `video_encoder`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline import entropy, motion
from pipeline.bundle import Bundle, Tables
from pipeline.class_map import class_map
from pipeline.entropy import Reader, Writer
from pipeline.errors import BitstreamError, BundleMismatch, ConfigError, MissingKey, PipelineError
from pipeline.flow_coding import decode_flow, grid_of, node_flow
from pipeline.frequency_tables import MAX_SYMBOL
from pipeline.integer_prior import ACTIVATION_UNITS, Prediction, check_hyper
from pipeline.keys import KeyBuffers
from pipeline.messages import Decoded, Frame, Kind, Mask, Packet, Region, Scores
from pipeline.runtime import Session, batch_sizes, open_session


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """One frame's integers: z (Z, hz, wz) and y less its predicted mean (C, h, w), both int16, and that prediction."""

    hyper: NDArray[np.int16]
    symbols: NDArray[np.int16]
    prediction: Prediction


def quantise(y: NDArray[np.float32], z: NDArray[np.float32], tables: Tables, quality: int) -> Latents:
    """Round the encode graph's y (C, h, w) and z (Z, hz, wz), Z = 0 where none is sent; what cannot be sent is clamped.

    ValueError where the bundle has no such quality level.
    """
    _check_level(tables, quality)
    hyper = _rounded(z, tables.hyper_limit)
    if tables.hyper:
        hyper = tables.hyper[quality].silenced(hyper)
    prediction = _predict(tables, hyper, (y.shape[1], y.shape[2]), quality)
    symbols = _rounded(y - prediction.means, MAX_SYMBOL)
    return Latents(hyper, tables.latent[quality].silenced(symbols), prediction)


def encode_latents(latents: Latents, tables: Tables, quality: int) -> bytes:
    """Code the integers of one frame as the body of a KEY region; ValueError where they are not of that level."""
    _check_level(tables, quality)
    writer = Writer(latents.hyper.size + latents.symbols.size)
    if tables.hyper:
        writer.put(latents.hyper, tables.hyper[quality], tables.frequencies)
    writer.put(latents.symbols, tables.latent[quality], tables.frequencies, _hints(tables, latents.prediction))
    return writer.finish()


def decode_latents(body: bytes, tables: Tables, size: tuple[int, int], quality: int) -> Latents:
    """Read the integers of a latent of `size` (h, w); raises BitstreamError on anything an encoder cannot have sent."""
    if not 0 <= quality < tables.levels:
        raise BitstreamError(_unknown_level(tables, quality))
    reader = Reader(body)
    hyper = np.zeros((0, *_hyper_size(size)), np.int16)
    if tables.hyper:
        hyper = reader.take(_hyper_size(size), tables.hyper[quality], tables.frequencies)
        check_hyper(hyper, tables.hyper_limit)
    prediction = _predict(tables, hyper, size, quality)
    symbols = reader.take(size, tables.latent[quality], tables.frequencies, _hints(tables, prediction))
    reader.finish()
    return Latents(hyper, symbols, prediction)


def _check_level(tables: Tables, quality: int) -> None:
    if not 0 <= quality < tables.levels:
        raise ValueError(_unknown_level(tables, quality))


def _unknown_level(tables: Tables, quality: int) -> str:
    return f"quality {quality}: the bundle has levels 0 to {tables.levels - 1}"


def _rounded(latent: NDArray[np.float32], limit: int) -> NDArray[np.int16]:
    whole: NDArray[np.float32] = np.floor(latent + np.float32(0.5)).clip(-limit, limit)
    return whole.astype(np.int16)


def _hyper_size(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 4), -(-size[1] // 4)


def _predict(tables: Tables, hyper: NDArray[np.int16], size: tuple[int, int], quality: int) -> Prediction:
    """What is known of y before it is read; the same at all places where there is no prior."""
    if tables.prior is not None:
        return tables.prior.predict(hyper, size)
    shape = (tables.latents, *size)
    means = (tables.offsets[quality] / np.float32(ACTIVATION_UNITS))[:, None, None]
    return Prediction(np.broadcast_to(means, shape), np.broadcast_to(np.uint8(0), shape))


def _hints(tables: Tables, prediction: Prediction) -> Prediction | None:
    return None if tables.prior is None else prediction


def dequantise(latents: Latents) -> NDArray[np.float32]:
    """The integers -> y_hat float32 (C, h, w), what the joint decoder sees."""
    return latents.symbols + latents.prediction.means


def packet_of(frame: Frame, body: bytes, *, bundle: bytes, quality: int) -> Packet:
    """The packet of a frame that is one KEY region."""
    return Packet(
        id=frame.id,
        captured_ms=frame.captured_ms,
        bundle=bundle,
        quality=quality,
        rows=1,
        columns=1,
        regions=(Region(Kind.KEY, 0, 0, body),),
    )


class Encoder:
    """Turns frames of the bundle's size into packets; keep it on one thread."""

    def __init__(self, bundle: Bundle, session: Session, *, quality: int) -> None:
        self._bundle = bundle
        self._session = session
        self.quality = quality

    def encode(self, frame: Frame) -> Packet:
        """One frame -> one packet with a single KEY region; ValueError when the image has another size."""
        quality = self.quality  # read once: another thread may set it
        body = encode_latents(self._latents(frame.image, quality), self._bundle.tables, quality)
        return packet_of(frame, body, bundle=self._bundle.id, quality=quality)

    def latents(self, image: NDArray[np.uint8]) -> Latents:
        """RGB (H, W, 3) -> the integers that are sent."""
        return self._latents(image, self.quality)

    def _latents(self, image: NDArray[np.uint8], quality: int) -> Latents:
        manifest = self._bundle.manifest
        if image.shape != (manifest.height, manifest.width, 3) or image.dtype != np.uint8:
            raise ValueError(f"image {image.dtype} {image.shape}; expected uint8 {manifest.height}x{manifest.width}x3")
        y, *z = self._session.run(image[None], np.array([quality], np.int64))
        hyper = z[0][0] if z else np.zeros((0, *_hyper_size((y.shape[2], y.shape[3]))), np.float32)
        return quantise(y[0], hyper, self._bundle.tables, quality)


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the graphs make of one frame: logits (K, h4, w4), scores (K,); None where the bundle lacks the graph."""

    logits: NDArray[np.float32] | None
    scores: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Content:
    """What a packet carries: the latents y_hat (C, h, w) of a KEY, or the flow (2, R, C) of a WARP."""

    packet: Packet
    kind: Kind
    values: NDArray[np.float32]


class Decoder:
    """Turns packets of any number of cameras into masks, class scores or both; keep it on one thread.

    `session` runs the graph of the masks, `labels` that of the scores, both on the same latents. `keys` holds what
    WARP packets refer to.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session | None,
        *,
        labels: Session | None = None,
        keys: KeyBuffers[Outputs] | None = None,
    ) -> None:
        self._bundle = bundle
        self._session, self._labels = session, labels
        self._keys = KeyBuffers[Outputs]() if keys is None else keys

    def decode(self, packets: Sequence[Packet], cameras: Sequence[str] | None = None) -> list[Decoded | PipelineError]:
        """One result per packet, in their order; what is wrong with one packet does not touch the others.

        `cameras` says whose each packet is, since no key is shared; without it all packets are of one camera. A KEY is
        there for all packets after it. A WARP whose key is not here gives MissingKey; its scores are those of its key.
        """
        names = [""] * len(packets) if cameras is None else cameras
        found = [self._content_or_error(packet) for packet in packets]
        fresh = iter(self._run([one for one in found if isinstance(one, _Content) and one.kind is Kind.KEY]))
        return [
            self._decoded_or_error(name, one, fresh) if isinstance(one, _Content) else one
            for name, one in zip(names, found, strict=True)
        ]

    def _run(self, keys: Sequence[_Content]) -> list[Outputs]:
        """What the graphs make of KEY packets, all of them in one batch."""
        if not keys:
            return []
        y_hat = np.stack([key.values for key in keys])  # (B, C, h, w)
        quality = np.array([key.packet.quality for key in keys], np.int64)
        logits = [None] * len(keys) if self._session is None else self._logits(y_hat, quality)
        scores = [None] * len(keys) if self._labels is None else self.class_scores(y_hat, quality)
        return [Outputs(*both) for both in zip(logits, scores, strict=True)]

    def _decoded_or_error(self, camera: str, content: _Content, fresh: Iterator[Outputs]) -> Decoded | PipelineError:
        """What one packet is decoded to; that of a KEY are the next of the fresh outputs."""
        packet, keys = content.packet, self._keys.of(camera)
        if content.kind is Kind.KEY:
            outputs = next(fresh)
            keys.put(packet, 0, outputs)
            return self._decoded(packet, outputs)
        try:
            return self._decoded(packet, self._moved(keys.get(packet, packet.regions[0]), content.values))
        except MissingKey as error:
            return error

    def _moved(self, key: Outputs, flow: NDArray[np.float32]) -> Outputs:
        manifest = self._bundle.manifest
        if key.logits is None:
            return key
        return replace(key, logits=motion.warp(key.logits, flow, manifest.height, manifest.width))

    def _decoded(self, packet: Packet, outputs: Outputs) -> Decoded:
        manifest, mask, scores = self._bundle.manifest, None, None
        if outputs.logits is not None:
            classes = class_map(outputs.logits, manifest.height, manifest.width)
            mask = Mask(packet.id, packet.captured_ms, packet.bundle, classes)
        if outputs.scores is not None:
            scores = Scores(packet.id, packet.captured_ms, packet.bundle, outputs.scores)
        return Decoded(mask, scores)

    def class_maps(self, y_hat: NDArray[np.float32], quality: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Latents (B, C, h, w) of levels (B,) -> B class maps (H, W); ConfigError where the bundle makes no masks."""
        manifest = self._bundle.manifest
        return [class_map(one, manifest.height, manifest.width) for one in self._logits(y_hat, quality)]

    def _logits(self, y_hat: NDArray[np.float32], quality: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        (logits,) = self._opened(self._session, "decode").run(y_hat, quality)  # (B, K, h4, w4)
        return [one.copy() for one in logits]  # views would keep the whole batch for as long as one of them is a key

    def class_scores(self, y_hat: NDArray[np.float32], quality: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Latents (B, C, h, w) of levels (B,) -> B times the scores (K,) of the classes; ConfigError without any."""
        (scores,) = self._opened(self._labels, "labels").run(y_hat, quality)  # (B, K)
        count, classes = scores.shape[1], len(self._bundle.manifest.classes)
        if count != classes:
            raise ConfigError(f"bundle {self._bundle.path}: {count} scores for {classes} classes; export it again")
        return list(scores)

    def _opened(self, session: Session | None, graph: str) -> Session:
        if session is None:
            raise ConfigError(f"bundle {self._bundle.path}: its graph {graph!r} is not open")
        return session

    def y_hat(self, packet: Packet) -> NDArray[np.float32]:
        """The latents (C, h, w) of a KEY packet; BundleMismatch or BitstreamError when they are not to be had."""
        tables, body = self._bundle.tables, self._body(packet, Kind.KEY)
        return dequantise(decode_latents(body, tables, self._bundle.latent_size, packet.quality))

    def flow(self, packet: Packet) -> NDArray[np.float32]:
        """The flow (2, R, C) from the key that a WARP packet carries; raises as y_hat does."""
        body = self._body(packet, Kind.WARP)
        grid = grid_of(self._bundle.manifest.height, self._bundle.manifest.width)
        return node_flow(decode_flow(body, grid), grid)

    def _body(self, packet: Packet, kind: Kind) -> bytes:
        """The body of the packet's one region, if it is of this kind."""
        if packet.bundle != self._bundle.id:
            raise BundleMismatch(
                f"the packet is of bundle {packet.bundle.hex()}, this worker has {self._bundle.id.hex()}; "
                "start both with the same bundle"
            )
        if (packet.rows, packet.columns) != (1, 1) or [region.kind for region in packet.regions] != [kind]:
            raise BitstreamError("the packet is not one KEY or WARP of the whole frame, all this version decodes")
        if not 0 <= packet.quality < self._bundle.tables.levels:
            raise BitstreamError(_unknown_level(self._bundle.tables, packet.quality))
        return packet.regions[0].body

    def _content_or_error(self, packet: Packet) -> _Content | PipelineError:
        warps = [region.kind for region in packet.regions] == [Kind.WARP]
        try:
            if warps:
                return _Content(packet, Kind.WARP, self.flow(packet))
            return _Content(packet, Kind.KEY, self.y_hat(packet))
        except PipelineError as error:
            return error


def open_encoder(bundle: Bundle, *, engine: str = "auto", threads: int = 0, quality: int | None = None) -> Encoder:
    """The camera's half, ready and warm; ConfigError when the bundle has no such quality level."""
    levels = [level.index for level in bundle.manifest.quality_levels]
    chosen = bundle.manifest.default_quality if quality is None else quality
    if chosen not in levels:
        raise ConfigError(f"quality {chosen}: bundle {bundle.manifest.name} has {', '.join(map(str, levels))}")
    _keep_blas_on_one_thread()
    # bf16 in the first layers would cost 0.3 to 0.5 mIoU, and make it depend on the camera's processor.
    session = open_session(bundle.graph("encode"), engine=engine, threads=threads, float32=True)
    encoder = Encoder(bundle, session, quality=chosen)
    encode_latents(encoder.latents(_grey(bundle)), bundle.tables, chosen)
    return encoder


def open_decoder(
    bundle: Bundle, *, engine: str = "auto", threads: int = 0, batch: int = 1, labels: bool = True
) -> Decoder:
    """The worker's half, ready and warm for batches of up to so many packets, `labels`: for class scores too.

    Raises ConfigError when nothing is left that the bundle could be decoded to.
    """
    wanted = [name for name in ("decode", *(["labels"] if labels else [])) if bundle.has_graph(name)]
    if not wanted:
        raise ConfigError(f"bundle {bundle.path}: no graph makes masks, and labels are off or have none; use another")
    _keep_blas_on_one_thread()
    opened = {name: open_session(bundle.graph(name), engine=engine, threads=threads) for name in wanted}
    decoder = Decoder(bundle, opened.get("decode"), labels=opened.get("labels"))
    entropy.warm_up()
    motion.warm_up_warping()
    rows, columns = bundle.latent_size
    if bundle.tables.prior is not None:
        nothing = np.zeros((bundle.tables.prior.hyper_latents, *_hyper_size((rows, columns))), np.int16)
        bundle.tables.prior.predict(nothing, (rows, columns))
    for size in batch_sizes(batch):
        y_hat = np.zeros((size, bundle.tables.latents, rows, columns), np.float32)
        if "decode" in opened:
            decoder.class_maps(y_hat, np.zeros(size, np.int64))
        if "labels" in opened:
            decoder.class_scores(y_hat, np.zeros(size, np.int64))
    return decoder


def _keep_blas_on_one_thread() -> None:
    """For the integer prior's small products: with more threads, waiting for a busy core takes 30 times the work."""
    threadpool_limits(limits=1, user_api="blas")


def _grey(bundle: Bundle) -> NDArray[np.uint8]:
    return np.full((bundle.manifest.height, bundle.manifest.width, 3), 128, np.uint8)
