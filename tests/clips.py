"""Small videos for tests: picture n is grey of level 10 * n, with a white left edge; and a server that plays them."""

import asyncio
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import av
import cv2
import numpy as np
from numpy.typing import NDArray


def picture(number: int, *, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """uint8 RGB (height, width, 3)."""
    image = np.full((height, width, 3), 10 * number % 250, np.uint8)
    image[:, : width // 8] = 255
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    """The number of the picture that this is, in spite of coding losses."""
    middle = image[:, image.shape[1] // 4 : -image.shape[1] // 4]
    return round(float(middle.mean()) / 10)


def write_clip(path: Path, *, frames: int = 10, fps: int = 25, width: int = 64, height: int = 48) -> Path:
    """A video file of the numbered pictures."""
    pictures = [picture(number, width=width, height=height) for number in range(frames)]
    path.write_bytes(_encoded(pictures, fps=fps, format="mp4"))
    return path


def write_turned_clip(path: Path, *, matrix: tuple[int, int, int, int]) -> Path:
    """A video file that says where its pictures' points go: (x, y) to (ax + cy, bx + dy).

    Its pictures have a white left edge, and a black upper one.
    """
    pictures = [picture(number) // 2 + 127 for number in range(3)]
    for image in pictures:
        image[:6] = 0
    data = bytearray(_encoded(pictures, fps=25, format="mp4"))
    # In the track's header after version and flags, times, number, layer and volume (ISO/IEC 14496-12, 8.3.2).
    at = data.index(b"tkhd") + len(b"tkhd") + 40
    a, b, c, d = (one << 16 for one in matrix)
    data[at : at + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(data)
    return path


def write_scratched_clip(path: Path, *, frames: int = 30) -> Path:
    """A video file of the numbered pictures in whose middle some bytes were lost, and so some pictures."""
    data = bytearray(write_clip(path, frames=frames).read_bytes())
    at = (data.index(b"mdat") + data.index(b"moov")) // 2
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    return path


def write_stream(path: Path, *, frames: int = 10) -> Path:
    """The numbered pictures as a bare stream: no container, so no time stamps."""
    path.write_bytes(_encoded([picture(number) for number in range(frames)], fps=25, format="m4v"))
    return path


def write_images(folder: Path, *, count: int = 5) -> Path:
    """A directory of the numbered pictures, which also holds something else."""
    folder.mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:03}.png"), picture(number)[:, :, ::-1])
    (folder / "notes.txt").write_text("not an image")
    return folder


def _encoded(
    pictures: Sequence[NDArray[np.uint8]], *, fps: int, format: str, options: dict[str, str] | None = None
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format, options=options) as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, _ = pictures[0].shape
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.gop_size = 5
        for image in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


class RtspServer:
    """Plays an MPEG transport stream over RTSP, once per connection, then hangs up; counts what was asked."""

    def __init__(self, *, frames: int = 10, fps: int = 25, port: int = 0) -> None:
        self.port = port  # 0: any that is free
        self.plays = 0
        self.transports: list[str] = []
        self._stream = _encoded([picture(number) for number in range(frames)], fps=fps, format="mpegts")
        self._length_s = frames / fps

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"rtsp://user:secret@127.0.0.1:{self.port}/live"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                writer.write(self._answer(request))
                if request.startswith("PLAY"):
                    self.plays += 1
                    await self._play(writer)
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, request: str) -> bytes:
        method, _, rest = request.partition(" ")
        headers = dict(line.split(": ", 1) for line in rest.split("\r\n")[1:] if ": " in line)
        lines = ["RTSP/1.0 200 OK", f"CSeq: {headers['CSeq']}", "Session: 1"]
        body = ""
        if method == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:0\r\n"
            lines.append("Content-Type: application/sdp")
        elif method == "SETUP":
            self.transports.append(headers["Transport"])
            lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        elif method == "OPTIONS":
            lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        lines.append(f"Content-Length: {len(body)}")
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        chunks = [self._stream[at : at + 7 * 188] for at in range(0, len(self._stream), 7 * 188)]
        for sequence, chunk in enumerate(chunks):
            time = int(90_000 * self._length_s * sequence / len(chunks))
            packet = struct.pack("!BBHII", 0x80, 33, sequence, time, 1) + chunk
            writer.write(struct.pack("!cBH", b"$", 0, len(packet)) + packet)
            await writer.drain()
            await asyncio.sleep(self._length_s / len(chunks))


class MjpegServer:
    """A network camera's MJPEG over HTTP: `frames` a connection, at a rate that is not said, then silence.

    Instead it may give a recording, whose length it says, or a stream at a rate that is said, each of 10 pictures.
    """

    def __init__(
        self, *, fps: int, frames: int = 100_000, instead: Literal["recording", "stream"] | None = None
    ) -> None:
        self.fps, self.frames = fps, frames
        pictures = [picture(number) for number in range(10)]
        self._given = b""
        if instead == "recording":
            clip = _encoded(pictures, fps=fps, format="mp4")
            self._given = f"Content-Length: {len(clip)}\r\n\r\n".encode() + clip
        elif instead == "stream":
            self._given = b"\r\n" + _encoded(pictures, fps=fps, format="matroska", options={"live": "1"})
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/live"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            await reader.readuntil(b"\r\n\r\n")
            if self._given:
                writer.write(b"HTTP/1.0 200 OK\r\n" + self._given)
                await writer.drain()
            else:
                await self._play(writer)
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        loop = asyncio.get_running_loop()
        began_s, number = loop.time(), 0
        while number < self.frames:
            jpeg = cv2.imencode(".jpg", picture(number % 10))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            writer.write(head.encode() + jpeg + b"\r\n")
            await writer.drain()
            number += 1
            await asyncio.sleep(max(0.0, began_s + number / self.fps - loop.time()))


def write_late_stream(path: Path, *, frames: int, key_interval: int) -> Path:
    """The numbered pictures as H.264 as it comes out of a camera, without the first key frame and what tells of it."""
    with av.open(io.BytesIO(), "w", format="h264") as container:
        options = {"g": str(key_interval), "sc_threshold": "0", "bf": "0"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pictures = (av.VideoFrame.from_ndarray(picture(number), format="rgb24") for number in range(frames))
        packets = [bytes(packet) for frame in (*pictures, None) for packet in stream.encode(frame)]
    path.write_bytes(b"".join(packets[1:]))
    return path
