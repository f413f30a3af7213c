"""The tokens of the cameras that may come over WebRTC: a file of lines `camera token`, read anew when it changes."""

import asyncio
from pathlib import Path

import structlog

from pipeline.errors import ConfigError
from pipeline.messages import check_camera_name
from pipeline.transport.webrtc_requests import token_check

_EVERY_S = 2.0
_LIMIT_BYTES = 1 << 20

log = structlog.get_logger()


def read_tokens(file: Path) -> dict[str, str]:
    """Camera -> token; raises ConfigError, which never tells a token, with the line that is wrong."""
    try:
        if file.stat().st_size > _LIMIT_BYTES:
            raise ConfigError(f"{file}: longer than {_LIMIT_BYTES} bytes; that is no file of tokens")
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; name a file with lines `camera token`") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text; name a file with lines `camera token`") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not (words[1].isascii() and words[1].isprintable()):
            raise ConfigError(f"{file}, line {number}: write a camera's name, a space and its token, which is ASCII")
        try:
            camera = check_camera_name(words[0])
        except ConfigError as error:
            raise ConfigError(f"{file}, line {number}: it begins with no camera name of a-z, 0-9, - and _") from error
        if camera in tokens:
            raise ConfigError(f"{file}, line {number}: camera {camera} has a token above")
        tokens[camera] = words[1]
    return tokens


class Tokens:
    """What the file says now, or said when it was last right."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tokens: dict[str, str] = {}
        self._reported = ""

    async def read(self) -> None:
        """Read the file; raises ConfigError."""
        found = await asyncio.to_thread(read_tokens, self._file)
        if found != self._tokens:
            self._tokens = found
            log.info("tokens of cameras read", file=str(self._file), cameras=len(found))

    async def watch(self) -> None:
        """Read the file again and again, for ever; one that is wrong changes nothing."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.read()
                self._reported = ""
            except ConfigError as error:
                if str(error) != self._reported:
                    log.warning("tokens stay as they are", reason=str(error))
                self._reported = str(error)

    def accepts(self, camera: str, token: str) -> bool:
        """Whether it is the camera's token."""
        return token_check(self._tokens)(camera, token)
