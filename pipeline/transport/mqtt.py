"""A channel over an MQTT broker that connects, and reconnects for ever, in the background."""

import asyncio
import random
import secrets
import time
from collections.abc import Callable

import aiomqtt
import structlog

from pipeline.errors import TransportError
from pipeline.transport import LIVE, Delivery, Message, mqtt_client
from pipeline.transport.mqtt_address import MqttAddress, parse_mqtt_url
from pipeline.transport.reconnecting import STEADY_S, Reconnecting, Retry
from pipeline.transport.subscription import Subscription

log = structlog.get_logger(__name__)

BRIEF_LIMIT = 3  # good connections in a row that were cut at once: another client has our name


class MqttChannel(Reconnecting[MqttAddress]):
    """Channel over MQTT 5 or 3.1.1; `url` as parse_mqtt_url reads it (raises ConfigError).

    Entering does not wait for the broker. The will is published, retained, when this process dies without
    closing; the broker ends an older session of the same `client_id`. Attempts are as far apart as `retry` says, which
    takes us as not wanted where the login was refused or another took our place.
    """

    def __init__(
        self,
        url: str,
        *,
        root: str = "maskcast",
        client_id: str | None = None,
        will: tuple[str, bytes] | None = None,
        buffer: int = 256,
        on_drop: Callable[[], None] | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        address = parse_mqtt_url(url)
        super().__init__(address, "the broker", buffer=buffer, on_drop=on_drop, retry=retry, rng=rng, clock=clock)
        self._prefix = f"{root}/"
        self._named = client_id is not None
        self._client_id = client_id or f"maskcast-{secrets.token_hex(6)}"
        self._will = None if will is None else (self._prefix + will[0], will[1])
        self._old_protocol = address.version == "3.1.1"
        self._wanted: set[str] = set()  # filters to ask the broker for
        self._wanting = asyncio.Event()
        self._retained: dict[str, tuple[bytes, Delivery]] = {}
        self._unsent: set[str] = set()  # topics of retained messages that the next connection is to carry
        self._client: aiomqtt.Client | None = None
        self._pending = 0
        self._turn = asyncio.Lock()  # of live messages
        self._met = False  # whether this broker ever took us
        self._brief = 0  # connections that it took and that ended soon, since one that held
        self._rivalry_reported = False

    @property
    def connected(self) -> bool:
        """Whether the broker took us, our subscriptions and our retained messages."""
        return self._client is not None

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        """Send one message; raises TransportError when it cannot leave now.

        Retained messages are kept, the newest of each topic, and sent again on each connect; published while
        there is no connection they wait for the next.
        """
        if delivery.retain:
            self._retained[topic] = (payload, delivery)
        if self._client is not None:
            await self._send(self._client, topic, payload, delivery)
            self._forget_cleared(topic)
        elif delivery.retain and not self._closed:
            self._unsent.add(topic)
        else:
            raise TransportError(f"no connection to the broker at {self._address}")

    def subscribe(self, *filters: str) -> Subscription:
        """Messages that match, beginning with the retained ones; ends when the channel closes.

        A broker may send a message once for each of our filters that it matches: they should not overlap.
        """
        subscription = self._readers.add(filters)
        self._wanted.update(filters)
        self._wanting.set()
        return subscription

    async def _run(self) -> None:
        attempt = 0
        while True:
            begun, self._taken = self._clock(), False
            error = await self._connection()
            steady = self._clock() - begun >= STEADY_S
            attempt = 0 if steady else attempt + 1
            self._brief = 0 if steady else self._brief + self._taken
            self._judge(error)
            await asyncio.sleep(self._pause_s(attempt, error))

    async def _connection(self) -> Exception:
        """Hold one connection from first to last; returns what ended it."""
        error: Exception = aiomqtt.MqttError("closed")
        try:
            async with mqtt_client.connection(
                self._address,
                tls=self._tls,
                client_id=self._client_id,
                will=self._will,
                old_protocol=self._old_protocol,
            ) as client:
                await self._serve(client)
        except* aiomqtt.MqttError as errors:
            error = errors.exceptions[0]
        return error

    async def _serve(self, client: aiomqtt.Client) -> None:
        """Receive, and keep filters and retained messages up to date; raises when the connection ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(client))
                active: set[str] = set()
                self._wanted = self._readers.filters()
                await self._update_filters(client, active)
                await self._send_retained(client)
                self._client = client
                self._ready.set()
                self._report_connected()
                while True:
                    await self._wanting.wait()
                    await self._update_filters(client, active)
        finally:
            self._client = None
            self._ready.clear()

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            topic = message.topic.value
            if topic.startswith(self._prefix) and isinstance(message.payload, bytes):
                self._readers.offer(Message(topic.removeprefix(self._prefix), message.payload))

    async def _update_filters(self, client: aiomqtt.Client, active: set[str]) -> None:
        """Ask for what is newly wanted and stop the rest.

        A filter that is active is asked for again: that is how its new reader gets the retained messages.
        """
        self._wanting.clear()
        fresh, self._wanted = sorted(self._wanted), set()
        gone = sorted(active - self._readers.filters())
        if fresh:
            for refused in await mqtt_client.subscribe(client, [self._prefix + each for each in fresh]):
                log.error(
                    "the broker refuses a subscription: check its access rules",
                    address=str(self._address),
                    user=self._address.user,
                    filter=refused,
                )
        if gone:
            await mqtt_client.unsubscribe(client, [self._prefix + each for each in gone])
        active.difference_update(gone)
        active.update(fresh)

    async def _send_retained(self, client: aiomqtt.Client) -> None:
        self._unsent = set(self._retained)
        while self._unsent:
            topic = self._unsent.pop()
            await mqtt_client.publish(client, self._prefix + topic, *self._retained[topic])
            self._forget_cleared(topic)

    def _forget_cleared(self, topic: str) -> None:
        """Keep no message that only cleared its topic, once the broker has it."""
        if topic in self._retained and not self._retained[topic][0]:
            del self._retained[topic]

    async def _send(self, client: aiomqtt.Client, topic: str, payload: bytes, delivery: Delivery) -> None:
        if self._pending >= mqtt_client.PENDING_LIMIT:
            raise TransportError(
                f"the link to the broker at {self._address} is too slow: {self._pending} messages wait"
            )
        self._pending += 1
        try:
            if delivery.qos:
                await mqtt_client.publish(client, self._prefix + topic, payload, delivery)
            else:
                await mqtt_client.publish_live(client, self._prefix + topic, payload, delivery, turn=self._turn)
        except aiomqtt.MqttError as error:
            raise TransportError(f"the broker at {self._address} did not take a message: {error}") from error
        finally:
            self._pending -= 1

    def _report_connected(self) -> None:
        self._reported, self._met, self._taken = "", True, True
        version = "3.1.1" if self._old_protocol else "5"
        log.info("connected to the broker", address=str(self._address), version=version)

    def _judge(self, error: Exception) -> None:
        """Report why there is no connection, once for each new reason; change version if that may help."""
        if self._address.version is None and mqtt_client.may_be_version(error):
            self._old_protocol = not self._old_protocol
        reason = mqtt_client.reason_of(error)
        if not self._met and mqtt_client.may_be_no_broker(error):
            reason += "; is this an MQTT port, and mqtt:// or mqtts:// right?"
        if reason == self._reported:
            return
        self._reported = reason
        if mqtt_client.is_taken_over(error) or (self._named and self._brief >= BRIEF_LIMIT):
            self._report_rival()
        elif mqtt_client.is_refusal(error):
            user = f"user {self._address.user!r}" if self._address.user else "a client without a user name"
            log.error(
                f"the broker refuses {user}: check user and password in its address",
                address=str(self._address),
                client=self._client_id,
                reason=reason,
            )
        else:
            log.warning("waiting for the broker", address=str(self._address), reason=reason)

    def _report_rival(self) -> None:
        """Say once that another client has our name: it and we throw each other out. Not every broker says why."""
        if not self._rivalry_reported:
            log.error(
                "thrown out by another client of the same name, it seems: give each node a name of its own",
                address=str(self._address),
                client=self._client_id,
            )
        self._rivalry_reported = True

    def _pause_s(self, attempt: int, error: Exception) -> float:
        unwanted = mqtt_client.is_refusal(error) or mqtt_client.is_taken_over(error)
        return (self._retry.refused_s if unwanted else self._retry.full_s(attempt)) * self._rng.uniform(0.5, 1.0)
