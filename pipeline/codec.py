"""Frame to packet on the camera, packet to mask on the worker: two halves that face each other.

Encoder   image -> [encode graph] -> y, z -> round z -> integer prior -> round y - mean -> coder -> KEY regions
Decoder   KEY region -> coder -> z -> integer prior -> coder -> y_hat -> [decode graph] -> logits -> class map
                                                                    +--> [labels graph] -> scores
          WARP region -> coder -> flow -> [warp of its key's logits] -> logits -> class map

Both graphs see whole frames, of any grid. Bundles without a prior have no z; y is rounded as it is. WARP regions are
made in `video_encoder`; `region_decoder` reads and shows the regions of a packet.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline import entropy, motion
from pipeline.bundle import Bundle
from pipeline.class_map import class_map
from pipeline.errors import BitstreamError, ConfigError, MissingKey, PipelineError
from pipeline.hysteresis import warm_up_hysteresis
from pipeline.keys import KeyBuffer, KeyBuffers, Stream, key_sequence, stream_of
from pipeline.latent_coding import Latents, encode_latents, hyper_size, quantise
from pipeline.messages import Decoded, Frame, FrameId, Kind, Packet, Region
from pipeline.outlining import Outliner, open_outliner
from pipeline.region_decoder import HeldKey, LastMasks, Outputs, Reading, canvas_of, cells_of, read, show
from pipeline.regions import OVERLAP_PX, Grid, parse_grid, warm_up_merging
from pipeline.runtime import Precision, Session, batch_sizes, is_quick_at_int8, open_session

DECODE_INT8 = "decode_int8"  # the graph `decode`, its large convolutions in 8-bit integers


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
    """Turns frames of the bundle's size into packets of a grid, 1x1 unless told; keep it on one thread.

    With an `outliner`, `outline` (h, w) is what that says of the frame that was encoded last; None without.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        *,
        quality: int,
        grid: Grid | None = None,
        outliner: Outliner | None = None,
    ) -> None:
        self._bundle = bundle
        self._session = session
        self._grid = grid or Grid(1, 1, bundle.manifest.height, bundle.manifest.width)
        self._outliner = outliner
        self.quality = quality
        self.outline: NDArray[np.float32] | None = None

    def encode(self, frame: Frame, regions: Iterable[int] | None = None) -> Packet:
        """One frame -> one packet of KEY regions: these, or all of the grid; ValueError on an image of another size."""
        quality = self.quality  # read once: another thread may set it
        indexes = sorted(range(self._grid.count) if regions is None else regions)
        y, z = self.analysed(frame.image, quality)
        self.outline = None if self._outliner is None else self._outliner(y, quality)
        keys = tuple(Region(Kind.KEY, index, 0, self._coded(y, z, quality, index)) for index in indexes)
        head = packet_of(frame, b"", bundle=self._bundle.id, quality=quality)
        return replace(head, rows=self._grid.rows, columns=self._grid.columns, regions=keys)

    def latents(self, image: NDArray[np.uint8]) -> Latents:
        """RGB (H, W, 3) -> the integers that are sent where one region is the whole frame."""
        quality = self.quality
        return quantise(*self.analysed(image, quality), self._bundle.tables, quality)

    def _coded(self, y: NDArray[np.float32], z: NDArray[np.float32], quality: int, index: int) -> bytes:
        """The body of one region, of the frame's y (C, h, w) and z (Z, hz, wz)."""
        cells = cells_of(self._grid.places[index].core)
        return encode_latents(quantise(y, z, self._bundle.tables, quality, cells), self._bundle.tables, quality)

    def analysed(self, image: NDArray[np.uint8], quality: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RGB (H, W, 3) -> y (C, h, w) and z (Z, hz, wz), Z = 0 where none is sent, neither of them rounded yet."""
        manifest = self._bundle.manifest
        if image.shape != (manifest.height, manifest.width, 3) or image.dtype != np.uint8:
            raise ValueError(f"image {image.dtype} {image.shape}; expected uint8 {manifest.height}x{manifest.width}x3")
        y, *z = self._session.run(image[None], np.array([quality], np.int64))
        return y[0], z[0][0] if z else np.zeros((0, *hyper_size((y.shape[2], y.shape[3]))), np.float32)


class Decoder:
    """Turns packets of any number of cameras into masks, class scores or both; keep it on one thread.

    `session` runs the graph of the masks, `labels` that of the scores, both on the same latents. `keys` holds what
    WARP regions refer to; `overlap_px` is that of the cameras' grids; `hysteresis` is in logits, 0 for none.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session | None,
        *,
        labels: Session | None = None,
        keys: KeyBuffers[HeldKey] | None = None,
        overlap_px: int = OVERLAP_PX,
        hysteresis: float = 0.0,
    ) -> None:
        self._bundle, self._overlap_px = bundle, overlap_px
        self._session, self._labels = session, labels
        self._keys = KeyBuffers[HeldKey]() if keys is None else keys
        self._last = LastMasks(len(bundle.manifest.classes), cameras=self._keys.cameras, hysteresis=hysteresis)

    def decode(self, packets: Sequence[Packet], cameras: Sequence[str] | None = None) -> list[Decoded | PipelineError]:
        """One result per packet, in their order; what is wrong with one packet does not touch the others.

        `cameras` says whose each packet is, since no key is shared; without it all packets are of one camera. A KEY is
        there for all packets after it. Regions that are absent, or whose keys are not here, keep their last mask, and
        the latter are named; where nothing new or nothing before can be shown, that is MissingKey. The scores
        of a WARP are those of its key.
        """
        names = [""] * len(packets) if cameras is None else cameras
        found = [self._read(name, packet) for name, packet in zip(names, packets, strict=True)]
        fresh = self._run([one for one in found if isinstance(one, Reading) and one.level is not None])
        return [one if isinstance(one, PipelineError) else self._shown(one, fresh) for one in found]

    def missing(self, packets: Sequence[Packet], cameras: Sequence[str]) -> list[tuple[Region, ...]]:
        """The regions of each packet whose keys are neither here nor, it seems, in a packet before it."""
        before: set[tuple[str, Stream, int, int]] = set()  # camera, stream, region and sequence of the KEYs
        found = []
        for camera, packet in zip(cameras, packets, strict=True):
            ours = packet.bundle == self._bundle.id
            absent, stream = self._keys.of(camera).missing(packet) if ours else (), stream_of(packet)
            keys = {region: (camera, stream, region.index, key_sequence(packet, region)) for region in packet.regions}
            found.append(tuple(one for one in absent if keys[one] not in before))
            before.update(key for one, key in keys.items() if one.kind is Kind.KEY)
        return found

    def _read(self, camera: str, packet: Packet) -> Reading | PipelineError:
        try:
            return read(camera, packet, self._bundle, self._keys.of(camera), overlap_px=self._overlap_px)
        except PipelineError as error:
            return error

    def _run(self, readings: Sequence[Reading]) -> Iterator[Outputs]:
        """What the graphs make of packets that bring latents, all of them in one batch."""
        if not readings:
            return iter(())
        y_hat = np.stack([canvas_of(one, self._keys.of(one.camera)) for one in readings])  # (B, C, h, w)
        quality = np.array([one.level for one in readings], np.int64)
        logits = [None] * len(readings) if self._session is None else self._logits(y_hat, quality)
        scores = [None] * len(readings) if self._labels is None else self.class_scores(y_hat, quality)
        return itertools.starmap(Outputs, zip(logits, scores, strict=True))

    def _shown(self, reading: Reading, fresh: Iterator[Outputs]) -> Decoded | PipelineError:
        """What one packet is decoded to; the next of the outputs are its own, if it brings latents."""
        try:
            return show(reading, None if reading.level is None else next(fresh), self._last)
        except MissingKey as error:
            return error

    def class_maps(self, y_hat: NDArray[np.float32], quality: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Latents (B, C, h, w) of levels (B,) -> B class maps (H, W); ConfigError where the bundle makes no masks."""
        manifest = self._bundle.manifest
        return [class_map(one, manifest.height, manifest.width) for one in self._logits(y_hat, quality)]

    def _logits(self, y_hat: NDArray[np.float32], quality: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        (logits,) = self._opened(self._session, "decode").run(y_hat, quality)  # (B, K, h4, w4)
        count, classes = logits.shape[1], len(self._bundle.manifest.classes)
        if count != classes:
            raise ConfigError(f"bundle {self._bundle.path}: logits of {count} classes, not {classes}; export it again")
        return list(logits)

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
        """The latents (C, h, w) of a packet whose regions are all KEY; raises what `read` does, else BitstreamError."""
        reading = read("", packet, self._bundle, KeyBuffer())
        keyed = [part.region.index for part in reading.parts if part.latents is not None and not part.region.age]
        if keyed != list(range(reading.grid.count)):
            raise BitstreamError("the packet is not a KEY of all of its frame")
        return canvas_of(reading, KeyBuffer())


def check_quality(bundle: Bundle, quality: int) -> int:
    """The level as it is; ConfigError when the bundle has no such quality level."""
    levels = [level.index for level in bundle.manifest.quality_levels]
    if quality not in levels:
        raise ConfigError(f"quality {quality}: bundle {bundle.manifest.name} has {', '.join(map(str, levels))}")
    return quality


def grid_named(bundle: Bundle, text: str | None) -> Grid:
    """The grid called so, such as 2x2, or the bundle's own; ConfigError where it is none for its frames."""
    return parse_grid(text or bundle.manifest.grid, height=bundle.manifest.height, width=bundle.manifest.width)


def open_encoder(
    bundle: Bundle,
    *,
    engine: str = "auto",
    threads: int = 0,
    quality: int | None = None,
    grid: Grid | None = None,
    outlines: bool = False,
) -> Encoder:
    """The camera's half, ready and warm, of a 1x1 grid unless told; ConfigError when there is no such quality level.

    With `outlines` it also tells where the edges of each frame's mask are, if the bundle has a graph for that.
    """
    chosen = check_quality(bundle, bundle.manifest.default_quality if quality is None else quality)
    _keep_blas_on_one_thread()
    session = open_session(bundle.graph("encode"), engine=engine, threads=threads, precision=Precision.ENDS)
    encoder = Encoder(
        bundle, session, quality=chosen, grid=grid, outliner=open_outliner(bundle, engine=engine) if outlines else None
    )
    if any(bundle.tables.rdoq_lambda):
        entropy.warm_up_rounding()
    encoder.encode(Frame(FrameId(0, 0), 0, _grey(bundle)))
    return encoder


def open_decoder(
    bundle: Bundle,
    *,
    engine: str = "auto",
    threads: int = 0,
    batch: int = 1,
    labels: bool = True,
    keys: KeyBuffers[HeldKey] | None = None,
    hysteresis: float = 0.0,
) -> Decoder:
    """The worker's half, ready and warm for batches of up to so many packets, `labels`: for class scores too.

    With `hysteresis`, in logits, masks depend on those before them, so that they flicker less. Raises ConfigError when
    nothing is left that the bundle could be decoded to.
    """
    wanted = [name for name in ("decode", *(["labels"] if labels else [])) if bundle.has_graph(name)]
    if not wanted:
        raise ConfigError(f"bundle {bundle.path}: no graph makes masks, and labels are off or have none; use another")
    _keep_blas_on_one_thread()
    files = {name: decode_graph(bundle, engine) if name == "decode" else bundle.graph(name) for name in wanted}
    opened = {name: open_session(file, engine=engine, threads=threads) for name, file in files.items()}
    decoder = Decoder(bundle, opened.get("decode"), labels=opened.get("labels"), keys=keys, hysteresis=hysteresis)
    entropy.warm_up()
    motion.warm_up_warping()
    warm_up_merging()
    if hysteresis:
        warm_up_hysteresis()
    rows, columns = bundle.latent_size
    if bundle.tables.prior is not None:
        nothing = np.zeros((bundle.tables.prior.hyper_latents, *hyper_size((rows, columns))), np.int16)
        bundle.tables.prior.predict(nothing, (rows, columns))
    for size in batch_sizes(batch):
        y_hat = np.zeros((size, bundle.tables.latents, rows, columns), np.float32)
        if "decode" in opened:
            decoder.class_maps(y_hat, np.zeros(size, np.int64))
        if "labels" in opened:
            decoder.class_scores(y_hat, np.zeros(size, np.int64))
    return decoder


def decode_graph(bundle: Bundle, engine: str = "auto") -> Path:
    """The graph that masks are made with: in 8-bit integers where there is one and the machine is quick at them."""
    return bundle.graph(DECODE_INT8 if bundle.has_graph(DECODE_INT8) and is_quick_at_int8(engine) else "decode")


def _keep_blas_on_one_thread() -> None:
    """For the integer prior's small products: with more threads, waiting for a busy core takes 30 times the work."""
    threadpool_limits(limits=1, user_api="blas")


def _grey(bundle: Bundle) -> NDArray[np.uint8]:
    return np.full((bundle.manifest.height, bundle.manifest.width, 3), 128, np.uint8)
