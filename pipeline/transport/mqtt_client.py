"""One connection to an MQTT broker, from opening to the last byte, and what aiomqtt and paho need for it."""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from pipeline.cancellation import cancellable
from pipeline.transport import STATE, Delivery
from pipeline.transport.mqtt_address import MqttAddress

KEEPALIVE_S = 15
ANSWER_S = 5.0  # for what the broker acknowledges
LIVE_S = 1.0  # for live data to leave this machine; later it would be of no use
_POLL_S = 0.005
PENDING_LIMIT = 64  # publishes that wait at a time; a link that cannot take more is too slow

_SOCKET_OPTIONS = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
if hasattr(socket, "TCP_NOTSENT_LOWAT"):
    # The kernel would hoard minutes of packets for a thin link; what it does not take waits where newer replaces older.
    _SOCKET_OPTIONS.append((socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2048))
_UNSUPPORTED_VERSION = 132
_UNSPECIFIED = 128  # what paho, too, says of a socket that closed without a word
_TAKEN_OVER = 142
_REFUSALS = {133, 134, 135, 138, 140}  # MQTT 5 reason codes that only a person can change
_NO_ANSWER = "Operation timed out"  # what aiomqtt says when TCP connected and no CONNACK came

_STRANGERS = (_NO_ANSWER, "Connection reset", "WRONG_VERSION_NUMBER", "UNEXPECTED_EOF")


@asynccontextmanager
async def connection(
    address: MqttAddress,
    *,
    tls: ssl.SSLContext | None,
    client_id: str,
    will: tuple[str, bytes] | None,
    old_protocol: bool,
) -> AsyncIterator[aiomqtt.Client]:
    """Connect, and close in order; the will's topic is a full one. Raises aiomqtt.MqttError."""
    client = aiomqtt.Client(
        address.host,
        address.port,
        username=address.user,
        password=address.password,
        identifier=client_id,
        protocol=aiomqtt.ProtocolVersion.V311 if old_protocol else aiomqtt.ProtocolVersion.V5,
        clean_session=True if old_protocol else None,
        will=None if will is None else aiomqtt.Will(*will, qos=STATE.qos, retain=STATE.retain),
        timeout=ANSWER_S,
        keepalive=KEEPALIVE_S,
        max_inflight_messages=PENDING_LIMIT,
        max_queued_outgoing_messages=2 * PENDING_LIMIT,
        tls_context=tls,
        socket_options=_SOCKET_OPTIONS,
    )
    client.pending_calls_threshold = 2 * PENDING_LIMIT
    try:
        await _open(client)
        try:
            yield client
        finally:
            with cancellable():
                await client.__aexit__(None, None, None)
    finally:
        _abandon(client)


async def publish(client: aiomqtt.Client, topic: str, payload: bytes, delivery: Delivery) -> None:
    """Send to a full topic, with its facts as properties where the protocol has them; bounded in time."""
    with cancellable():
        await client.publish(
            topic,
            payload,
            qos=delivery.qos,
            retain=delivery.retain,
            properties=_properties(delivery),
            timeout=ANSWER_S if delivery.qos else LIVE_S,
        )


async def publish_live(
    client: aiomqtt.Client, topic: str, payload: bytes, delivery: Delivery, *, turn: asyncio.Lock
) -> None:
    """The same for what nobody acknowledges: in turn, each when all before has left, and not at all if it does not.

    paho never gives up what it has taken, so that a link that stalled would bring packets later that were told lost.
    """
    try:
        async with asyncio.timeout(LIVE_S), turn:
            while client._client.want_write():  # noqa: ASYNC110 - paho has no signal
                await asyncio.sleep(_POLL_S)
            await publish(client, topic, payload, delivery)
    except TimeoutError as error:
        raise aiomqtt.MqttError(f"it did not leave in {LIVE_S:g} s") from error


async def subscribe(client: aiomqtt.Client, filters: list[str]) -> list[str]:
    """Ask for full filters; returns those that the broker refused."""
    # QoS 1 is the most we take: what is published at 0 comes at 0.
    with cancellable():
        answers = await client.subscribe([(wanted, 1) for wanted in filters])
    return [
        wanted
        for wanted, answer in zip(filters, answers, strict=False)
        if isinstance(answer, ReasonCode) and answer.is_failure
    ]


async def unsubscribe(client: aiomqtt.Client, filters: list[str]) -> None:
    """Ask for full filters no more."""
    with cancellable():
        await client.unsubscribe(filters)


def reason_of(error: Exception) -> str:
    """Why there is no connection, for a log."""
    said = re.sub(r"^\[code:\d+\] ", "", str(error.__cause__ or error))
    return "the connection was cut" if _reason_code(error) == _UNSPECIFIED else said


def is_refusal(error: Exception) -> bool:
    """Whether the broker knows us and says no: a wrong login, a forbidden client."""
    return _reason_code(error) in _REFUSALS


def is_taken_over(error: Exception) -> bool:
    """Whether the broker threw us out for another client of our name."""
    return _reason_code(error) == _TAKEN_OVER


def may_be_no_broker(error: Exception) -> bool:
    """Whether something listens there that does not speak MQTT with us."""
    return any(sign in str(error) for sign in _STRANGERS)


def may_be_version(error: Exception) -> bool:
    """Whether the broker may not speak our version of MQTT: it says so, or says nothing."""
    return _reason_code(error) == _UNSUPPORTED_VERSION or str(error) == _NO_ANSWER


async def _open(client: aiomqtt.Client) -> None:
    """Connect; a cancellation waits for the thread that does it, so that no socket is left."""
    opening = asyncio.ensure_future(client.__aenter__())
    try:
        await asyncio.shield(opening)
    except asyncio.CancelledError:
        if client._client.socket() is not None:  # the thread is done, only CONNACK is missing
            opening.cancel()
        await asyncio.wait([opening], timeout=2 * ANSWER_S)
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            with suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)
        raise


def _abandon(client: aiomqtt.Client) -> None:
    """Cut what is left: aiomqtt leaves the socket open where CONNACK or the last write did not come."""
    client._client.on_disconnect = None  # nobody waits for it any more, and aiomqtt would fail in it
    if client._disconnected.done() and not client._disconnected.cancelled():
        client._disconnected.exception()  # seen, or asyncio would complain that nobody looked
    left = client._client.socket()
    if isinstance(left, socket.socket):
        with suppress(OSError):
            left.shutdown(socket.SHUT_RDWR)


def _reason_code(error: Exception) -> int | None:
    known = [each for each in (error, error.__cause__) if isinstance(each, aiomqtt.MqttCodeError)]
    code = known[0].rc if known else None
    return code.value if isinstance(code, ReasonCode) else code


def _properties(delivery: Delivery) -> Properties | None:
    """Return a delivery's facts in the form of MQTT 5, which paho leaves out in 3.1.1; None without facts."""
    if delivery.content_type is None and delivery.expiry_s is None and not delivery.properties:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if delivery.content_type is not None:
        properties.ContentType = delivery.content_type
    if delivery.expiry_s is not None:
        properties.MessageExpiryInterval = delivery.expiry_s
    if delivery.properties:
        properties.UserProperty = list(delivery.properties.items())
    return properties
