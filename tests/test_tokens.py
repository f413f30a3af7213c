"""The file of tokens: what it may hold, and that it is read anew."""

import asyncio
from pathlib import Path

import pytest
from channels import until
from structlog.testing import capture_logs

from nodes import tokens as module
from nodes.tokens import Tokens, read_tokens
from pipeline.errors import ConfigError


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "tokens"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_a_line_is_a_camera_and_its_token(tmp_path: Path) -> None:
    text = "# who may come\n\ncam-1 abc\n   garden\t5f3e=/+  \n#cam-3 no\n"
    assert read_tokens(written(tmp_path, text)) == {"cam-1": "abc", "garden": "5f3e=/+"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cam-1\n", 1),
        ("cam-1 a\ncam-2 secret more\n", 2),
        ("Cam secret\n", 1),
        ("a/b secret\n", 1),
        ("cam-1 secr\u00e9t\n", 1),
        ("cam-1 secret\x07\n", 1),
        ("cam-1 a\n\ncam-1 secret\n", 3),
    ],
)
def test_a_wrong_line_is_named_and_no_token_told(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"tokens, line {line}: ") as caught:
        read_tokens(written(tmp_path, text))
    assert "secr" not in str(caught.value)


@pytest.mark.parametrize("text", [b"\xff\xfe", bytes(2 << 20)])
def test_what_is_no_file_of_tokens_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError, match="tokens"):
        read_tokens(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none"):
        read_tokens(tmp_path / "none")


async def test_only_a_cameras_own_token_is_accepted(tmp_path: Path) -> None:
    tokens = Tokens(written(tmp_path, "cam-1 abc\ncam-2 def\n"))
    await tokens.read()
    assert tokens.accepts("cam-1", "abc")
    for camera, token in (("cam-1", "def"), ("cam-1", ""), ("cam-1", "ab"), ("cam-3", "abc"), ("cam-3", ""), ("", "")):
        assert not tokens.accepts(camera, token)
    assert not tokens.accepts("cam-1", "\u00e9\udce9")


async def test_the_file_is_read_anew_and_one_that_is_wrong_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.01)
    file = written(tmp_path, "cam-1 abc\n")
    tokens = Tokens(file)
    await tokens.read()
    with capture_logs() as lines:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(tokens.watch())
            written(tmp_path, "cam-1 new\ncam-2 def\n")
            await until(lambda: tokens.accepts("cam-2", "def"))
            assert not tokens.accepts("cam-1", "abc")
            written(tmp_path, "what is this line\n")
            await until(lambda: any(line["log_level"] == "warning" for line in lines))
            await asyncio.sleep(0.1)
            assert tokens.accepts("cam-1", "new")
            file.unlink()
            await until(lambda: sum(line["log_level"] == "warning" for line in lines) == 2)
            written(tmp_path, "cam-1 last\n")
            await until(lambda: tokens.accepts("cam-1", "last"))
            watching.cancel()
    assert [line["log_level"] for line in lines].count("warning") == 2
    assert "def" not in str(lines)
