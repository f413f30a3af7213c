"""Frame to packet on the camera, packet to mask on the worker: two halves that face each other.

Encoder   image -> [encode graph] -> y, z -> round z -> integer prior -> round y - mean -> rANS -> KEY region
Decoder   KEY region -> rANS -> z -> integer prior -> rANS -> y_hat -> [decode graph] -> logits -> class map
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.bitstream import pack_key_body, unpack_key_body
from pipeline.bundle import Bundle, Tables
from pipeline.class_map import class_map
from pipeline.entropy import decode_symbols, encode_symbols
from pipeline.errors import BitstreamError, BundleMismatch, ConfigError, PipelineError
from pipeline.integer_prior import Prediction, check_hyper
from pipeline.messages import Frame, Kind, Mask, Packet, Region
from pipeline.runtime import Session, batch_sizes, open_session

_SYMBOL_LIMIT = (1 << 15) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """One frame's integers: z (Z, hz, wz) and y less its predicted mean (C, h, w), both int16, and that prediction."""

    hyper: NDArray[np.int16]
    symbols: NDArray[np.int16]
    prediction: Prediction


def quantise(y: NDArray[np.float32], z: NDArray[np.float32], tables: Tables) -> Latents:
    """Round the encode graph's y (C, h, w) and z (Z, hz, wz); values that cannot be sent are clamped."""
    limit = tables.hyper_limit
    hyper = np.floor(z + np.float32(0.5)).clip(-limit, limit).astype(np.int16)
    prediction = tables.prior.predict(hyper, (y.shape[1], y.shape[2]))
    symbols = np.floor(y - prediction.means + np.float32(0.5)).clip(-_SYMBOL_LIMIT, _SYMBOL_LIMIT)
    return Latents(hyper, symbols.astype(np.int16), prediction)


def encode_latents(latents: Latents, tables: Tables) -> bytes:
    """Code the integers of one frame as the body of a KEY region."""
    hyper = encode_symbols(latents.hyper.ravel(), _channel_indexes(latents.hyper.shape), tables.hyper)
    latent = encode_symbols(latents.symbols.ravel(), latents.prediction.indexes.ravel(), tables.latent)
    return pack_key_body(hyper, latent)


def decode_latents(body: bytes, tables: Tables, size: tuple[int, int]) -> Latents:
    """Read the integers of a latent of `size` (h, w); raises BitstreamError on anything an encoder cannot have sent."""
    coded = unpack_key_body(body)
    shape = (len(tables.hyper.sizes), -(-size[0] // 4), -(-size[1] // 4))
    hyper = decode_symbols(coded.hyper, _channel_indexes(shape), tables.hyper).reshape(shape)
    check_hyper(hyper, tables.hyper_limit)
    prediction = tables.prior.predict(hyper, size)
    symbols = decode_symbols(coded.latent, prediction.indexes.ravel(), tables.latent)
    return Latents(hyper, symbols.reshape(prediction.indexes.shape), prediction)


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


def _channel_indexes(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The table of each element of a hyper latent (Z, hz, wz), flat: its channel."""
    return np.repeat(np.arange(shape[0], dtype=np.uint8), shape[1] * shape[2])


class Encoder:
    """Turns frames of the bundle's size into packets; keep it on one thread."""

    def __init__(self, bundle: Bundle, session: Session, *, quality: int) -> None:
        self._bundle = bundle
        self._session = session
        self.quality = quality

    def encode(self, frame: Frame) -> Packet:
        """One frame -> one packet with a single KEY region; ValueError when the image has another size."""
        body = encode_latents(self.latents(frame.image), self._bundle.tables)
        return packet_of(frame, body, bundle=self._bundle.id, quality=self.quality)

    def latents(self, image: NDArray[np.uint8]) -> Latents:
        """RGB (H, W, 3) -> the integers that are sent."""
        manifest = self._bundle.manifest
        if image.shape != (manifest.height, manifest.width, 3) or image.dtype != np.uint8:
            raise ValueError(f"image {image.dtype} {image.shape}; expected uint8 {manifest.height}x{manifest.width}x3")
        y, z = self._session.run(image[None])
        return quantise(y[0], z[0], self._bundle.tables)


class Decoder:
    """Turns packets of any number of cameras into masks; keep it on one thread."""

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self._bundle = bundle
        self._session = session

    def decode(self, packets: Sequence[Packet]) -> list[Mask | PipelineError]:
        """One result per packet, in their order; what is wrong with one packet does not touch the others."""
        found = [self._y_hat_or_error(packet) for packet in packets]
        good = [y_hat for y_hat in found if isinstance(y_hat, np.ndarray)]
        maps = iter(self.class_maps(np.stack(good)) if good else ())
        return [
            Mask(packet.id, packet.captured_ms, packet.bundle, next(maps)) if isinstance(y_hat, np.ndarray) else y_hat
            for packet, y_hat in zip(packets, found, strict=True)
        ]

    def class_maps(self, y_hat: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
        """Latents (B, C, h, w) -> B class maps (H, W)."""
        manifest = self._bundle.manifest
        (logits,) = self._session.run(y_hat)  # (B, K, h4, w4)
        return [class_map(one, manifest.height, manifest.width) for one in logits]

    def y_hat(self, packet: Packet) -> NDArray[np.float32]:
        """The latents (C, h, w) of a packet; BundleMismatch or BitstreamError when they are not to be had."""
        if packet.bundle != self._bundle.id:
            raise BundleMismatch(
                f"the packet is of bundle {packet.bundle.hex()}, this worker has {self._bundle.id.hex()}; "
                "start both with the same bundle"
            )
        if (packet.rows, packet.columns) != (1, 1) or [r.kind for r in packet.regions] != [Kind.KEY]:
            raise BitstreamError("the packet is not one whole-frame KEY region, all this version decodes")
        tables = self._bundle.tables
        return dequantise(decode_latents(packet.regions[0].body, tables, self._bundle.latent_size))

    def _y_hat_or_error(self, packet: Packet) -> NDArray[np.float32] | PipelineError:
        try:
            return self.y_hat(packet)
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
    encode_latents(encoder.latents(_grey(bundle)), bundle.tables)
    return encoder


def open_decoder(bundle: Bundle, *, engine: str = "auto", threads: int = 0, batch: int = 1) -> Decoder:
    """The worker's half, ready and warm for batches of up to so many packets."""
    _keep_blas_on_one_thread()
    session = open_session(bundle.graph("decode"), engine=engine, threads=threads)
    decoder = Decoder(bundle, session)
    rows, columns = bundle.latent_size
    for size in batch_sizes(batch):
        decoder.class_maps(np.zeros((size, bundle.tables.prior.latents, rows, columns), np.float32))
    return decoder


def _keep_blas_on_one_thread() -> None:
    """For the integer prior's small products: with more threads, waiting for a busy core takes 30 times the work."""
    threadpool_limits(limits=1, user_api="blas")


def _grey(bundle: Bundle) -> NDArray[np.uint8]:
    return np.full((bundle.manifest.height, bundle.manifest.width, 3), 128, np.uint8)
