"""What travels on the data channel `messages`: everything but packets and receipts, one message each."""

import struct
from dataclasses import dataclass
from enum import IntEnum

from pipeline.errors import BitstreamError

MESSAGE_BYTES = 64 * 1024
_HEADER = struct.Struct("!BBH")  # kind, flags, bytes of the topic
_TOPIC_BYTES = 255
_QOS, _RETAIN = 0x03, 0x04


class Kind(IntEnum):
    """What a message asks of the other end."""

    PUBLISH = 1
    SUBSCRIBE = 2  # topic: a filter
    UNSUBSCRIBE = 3  # topic: a filter
    WILL = 4  # to be published if this end dies without a bye
    BYE = 5  # no topic; answered with another, so that who leaves knows that all before it came


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message of the channel `messages`."""

    kind: Kind
    topic: str = ""
    payload: bytes = b""
    qos: int = 0
    retain: bool = False


def message_bytes(envelope: Envelope) -> int:
    """How long the message of an envelope is; MESSAGE_BYTES at most can be sent."""
    return _HEADER.size + len(envelope.topic.encode()) + len(envelope.payload)


def pack_message(envelope: Envelope) -> bytes:
    """Envelope -> bytes; raises BitstreamError for what unpack_message would refuse."""
    topic = envelope.topic.encode()
    flags = envelope.qos | (_RETAIN if envelope.retain else 0)
    _check(envelope, size=message_bytes(envelope), topic_bytes=len(topic))
    return _HEADER.pack(envelope.kind, flags, len(topic)) + topic + envelope.payload


def unpack_message(data: bytes) -> Envelope:
    """Bytes -> envelope; raises BitstreamError for anything that pack_message does not make."""
    if not _HEADER.size <= len(data) <= MESSAGE_BYTES:
        raise BitstreamError(f"message: {len(data)} bytes, {_HEADER.size} to {MESSAGE_BYTES} are right")
    kind, flags, topic_bytes = _HEADER.unpack_from(data)
    end = _HEADER.size + topic_bytes
    if end > len(data):
        raise BitstreamError(f"message: topic of {topic_bytes} bytes, {len(data) - _HEADER.size} are there")
    if flags & ~(_QOS | _RETAIN):
        raise BitstreamError(f"message: flags {flags:#04x} are not known")
    try:
        topic = data[_HEADER.size : end].decode()
    except UnicodeDecodeError as error:
        raise BitstreamError("message: its topic is not UTF-8") from error
    envelope = Envelope(_kind(kind), topic, data[end:], flags & _QOS, bool(flags & _RETAIN))
    _check(envelope, size=len(data), topic_bytes=topic_bytes)
    return envelope


def _check(envelope: Envelope, *, size: int, topic_bytes: int) -> None:
    """Raise BitstreamError unless the fields go together."""
    kind, topic = envelope.kind, envelope.topic
    if size > MESSAGE_BYTES:
        raise BitstreamError(f"message: {size} bytes, at most {MESSAGE_BYTES}")
    if not 0 <= envelope.qos <= 2:
        raise BitstreamError(f"message: QoS {envelope.qos}")
    if topic_bytes > _TOPIC_BYTES or (kind is Kind.BYE) != (topic == "") or "\0" in topic:
        raise BitstreamError(f"message of kind {kind.name}: a topic of {topic_bytes} bytes is not right")
    carries = kind in (Kind.PUBLISH, Kind.WILL)
    if carries and ("+" in topic or "#" in topic):
        raise BitstreamError(f"message of kind {kind.name}: its topic is a filter")
    if not carries and (envelope.payload or envelope.qos or envelope.retain):
        raise BitstreamError(f"message of kind {kind.name}: nothing may follow the topic")


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError as error:
        raise BitstreamError(f"message: kind {number} is not known") from error
