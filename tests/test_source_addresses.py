"""Addresses of sources: what they name, what of them is shown, and one sentence where they name nothing."""

import pytest

from pipeline.errors import SourceError
from pipeline.source_addresses import kind_of, shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rtsp://user:pass/word@camera/1", "rtsp://camera/1"),
        ("http://camera/mjpg?user=admin&pwd=secret", "http://camera/mjpg"),
        ("http://camera/mjpg?user=admin&pwd=s@cret", "http://..."),
        ("http://camera:80/mjpg?mail=x@y.z&pwd=secret", "http://..."),
        ("http://user:secret@camera:80/mjpg?pwd=s@cret#top", "http://camera:80/mjpg"),
        ("http://[fe80::1]:80/mjpg?pwd=secret", "http://[fe80::1]:80/mjpg"),
        ("http://camera#pwd=secret", "http://camera"),
        ("rtsp://user:2024#secret@127.0.0.1/x", "rtsp://..."),
        ("rtsp://user:2024?secret@127.0.0.1/x", "rtsp://..."),
        ("rtsp://me@home.org:2024#secret@127.0.0.1/x", "rtsp://..."),
        ("rtsp://user:se?cr@et@camera/1", "rtsp://..."),
        ("rtsp://user:se/cr?et@camera/1", "rtsp://..."),
        ("rtmp://host/live/key", "rtmp://host/live/..."),
        ("rtmp://host/live/key/", "rtmp://host/live/..."),
        ("RTMPS://host/key?more", "RTMPS://host/..."),
        ("rtsp://camera/user=admin_password=secret_channel=1_stream=0.sdp", "rtsp://camera/..."),
        ("rtsp://camera/cam/user=admin&password=secret&channel=1", "rtsp://camera/cam/..."),
        ("rtsp://camera/PWD:secret/1", "rtsp://camera/..."),
        ("rtsp:/user:secret@camera/1", "...@camera/1"),
        ("user:secret@camera:554/1", "...@camera:554/1"),
        ("rtsp:/cam/x?user=admin&password=secret", "rtsp:/cam/x"),
        ("rtsp:/cam/x?user=admin&password=s@cret", "..."),
        ("rtsp:/cam/x?password=secret&back=http://home", "rtsp:/cam/x"),
        ("rtsp:/user:se?cret@camera/1", "..."),
        ("rtsp:/user:secret@camera/1?pwd=secret", "...@camera/1"),
        ("rtsp:/camera/user=admin_password=secret.sdp", "rtsp:/camera/..."),
        ("rtmp:/host/live/key", "rtmp:/host/live/..."),
        ("clip?.mp4", "clip?.mp4"),
        ("a?b.mp4", "a?b.mp4"),
        ("clips/Street #3 @ night?.mp4", "clips/Street #3 @ night?.mp4"),
        ("runs/key=3/clip.mp4", "runs/key=3/clip.mp4"),
    ],
)
def test_what_may_be_secret_in_an_address_is_not_shown(url: str, said: str) -> None:
    assert shown(url) == said


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:se#cret@camera/1",
        "rtsp://admin:se/cret@camera/1",
        "rtsp://admin:2024#cret@127.0.0.1/x",
        "rtsp://admin:2024?cret@127.0.0.1/x",
        "rtsp://admin:2024#pin=cret@127.0.0.1/x",
        "http://",
        "http://:80/x",
        "udp://",
        "udp://@",
        "rtsp://a:b/1",
    ],
)
def test_an_address_whose_host_cannot_be_told_is_refused_at_once(url: str) -> None:
    with pytest.raises(SourceError, match=r"it names no host; in user and password .* percent-encoded") as refused:
        kind_of(url)
    assert "cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:se@cret@camera/1",
        "rtsp://[fe80::1]:554/1",
        "udp://@239.0.0.1:1234",
        "udp://@:1234?fifo_size=100",
        "UDP://:1234",
        "rtp://@:5004",
        "http://camera/snap?mail=a@b.c",
        "http://user:secret@camera/snap?a@b.c",
    ],
)
def test_other_hosts_are_left_to_the_library(url: str) -> None:
    assert kind_of(url) == "server"


def test_user_and_password_are_not_shown() -> None:
    assert shown("rtsp://user:secret@camera/1") == "rtsp://camera/1"
    assert shown("rtsp://user:sec/ret@camera/1") == "rtsp://camera/1"
    assert shown("rtsp://user:sec@ret@camera/1") == "rtsp://camera/1"
    assert shown("clips//street@night.mp4") == "clips//street@night.mp4"


@pytest.mark.parametrize(
    ("url", "kind"),
    [("rtsp://c/1", "server"), ("RTSPS://c/1", "server"), ("0", "device"), ("/dev/video2", "device"), ("x", "file")],
)
def test_an_address_names_a_kind(url: str, kind: str) -> None:
    assert kind_of(url) == kind
