"""What every channel promises, what filters mean, and what the channel in memory adds."""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import aiomqtt
import pytest
from channels import LIMIT_S, quiet, ready, take

from pipeline.errors import ConfigError, TransportError
from pipeline.transport import CONTROL, LIVE, STATE, Channel, Delivery, Message, open_channel
from pipeline.transport.fallback import FallbackChannel
from pipeline.transport.memory import MemoryBroker, MemoryChannel
from pipeline.transport.mqtt import MqttChannel
from pipeline.transport.subscription import Subscription, matches

Open = Callable[..., Channel]


@pytest.fixture(params=["memory", "mqtt", "mqtt-3.1.1", "fallback"])
def new_channel(request: pytest.FixtureRequest, mqtt_url: str) -> Open:
    """Opens channels that meet each other and nobody from another test."""
    root = f"test-{os.urandom(6).hex()}"
    if request.param == "memory":
        broker = MemoryBroker()
        return lambda **options: MemoryChannel(broker, root=root, **options)
    if request.param == "fallback":
        return partial(open_fallback, MemoryBroker())
    url = mqtt_url + ("?version=3.1.1" if request.param == "mqtt-3.1.1" else "")
    return lambda **options: MqttChannel(url, root=root, **options)


def open_fallback(broker: MemoryBroker, *, will: tuple[str, bytes] | None = None, **options: Any) -> FallbackChannel:
    """A channel whose first is there."""
    opening = partial(MemoryChannel, broker, will=will, **options)
    return FallbackChannel(opening(), opening, **options)


@pytest.mark.parametrize("payload", [b"\x00\xff", b"", bytes(range(256)) * 4096])
@pytest.mark.parametrize("delivery", [LIVE, CONTROL])
async def test_message_arrives_byte_for_byte(new_channel: Open, payload: bytes, delivery: Delivery) -> None:
    async with new_channel() as sender, new_channel() as receiver:
        messages = receiver.subscribe("cam-1/latent")
        await ready(receiver)
        await ready(sender)
        await sender.publish("cam-1/latent", payload, delivery)
        assert await take(messages) == [Message("cam-1/latent", payload)]


async def test_messages_keep_their_order(new_channel: Open) -> None:
    async with new_channel() as sender, new_channel() as receiver:
        messages = receiver.subscribe("cam-1/latent")
        await ready(receiver)
        await ready(sender)
        for number in range(100):
            await sender.publish("cam-1/latent", bytes([number]))
        assert [message.payload[0] for message in await take(messages, 100)] == list(range(100))


async def test_only_what_matches_arrives_at_each_reader(new_channel: Open) -> None:
    async with new_channel() as channel:
        masks, first_camera = channel.subscribe("+/mask"), channel.subscribe("cam-1/state", "cam-1/stats")
        await ready(channel)
        for topic in ("cam-1/latent", "cam-1/stats", "cam-1/mask", "cam-2/mask/rle", "cam-2/mask"):
            await channel.publish(topic, topic.encode())
        assert [message.topic for message in await take(masks, 2)] == ["cam-1/mask", "cam-2/mask"]
        assert [message.topic for message in await take(first_camera)] == ["cam-1/stats"]
        assert await quiet(masks)


async def test_delivery_facts_do_not_get_in_the_way(new_channel: Open) -> None:
    facts = Delivery(expiry_s=5, content_type="image/png", properties={"epoch": "1", "sequence": "2"})
    async with new_channel() as channel:
        messages = channel.subscribe("cam-1/mask")
        await ready(channel)
        await channel.publish("cam-1/mask", b"png", facts)
        assert await take(messages) == [Message("cam-1/mask", b"png")]


async def test_late_reader_gets_the_newest_retained_message(new_channel: Open) -> None:
    async with new_channel() as sender, new_channel() as receiver:
        await ready(sender)
        await ready(receiver)
        await sender.publish("cam-1/state", b"old", STATE)
        await sender.publish("cam-1/state", b"new", STATE)
        assert await take(receiver.subscribe("+/state")) == [Message("cam-1/state", b"new")]


async def test_second_reader_of_a_filter_gets_retained_messages_too(new_channel: Open) -> None:
    async with new_channel() as channel:
        await ready(channel)
        await channel.publish("cam-1/state", b"here", STATE)
        first = channel.subscribe("+/state")
        assert await take(first) == [Message("cam-1/state", b"here")]
        assert await take(channel.subscribe("+/state")) == [Message("cam-1/state", b"here")]


async def test_empty_retained_message_clears_the_topic(new_channel: Open) -> None:
    async with new_channel() as channel:
        await ready(channel)
        await channel.publish("cam-1/state", b"here", STATE)
        await channel.publish("cam-1/state", b"", STATE)
        assert await quiet(channel.subscribe("+/state"))


async def test_state_published_before_entering_goes_out_on_connect(new_channel: Open) -> None:
    sender = new_channel()
    await sender.publish("cam-1/state", b"online", STATE)
    async with new_channel() as receiver:
        states = receiver.subscribe("+/state")
        await ready(receiver)
        async with sender:
            assert await take(states) == [Message("cam-1/state", b"online")]


async def test_subscription_made_before_entering_works(new_channel: Open) -> None:
    receiver = new_channel()
    messages = receiver.subscribe("cam-1/latent")
    async with receiver:
        await ready(receiver)
        await receiver.publish("cam-1/latent", b"x")
        assert len(await take(messages)) == 1


async def test_slow_reader_loses_the_oldest_and_it_is_counted(new_channel: Open) -> None:
    drops: list[int] = []
    async with new_channel(buffer=3, on_drop=lambda: drops.append(1)) as channel:
        messages, marker = channel.subscribe("cam-1/latent"), channel.subscribe("marker")
        await ready(channel)
        for number in range(8):
            await channel.publish("cam-1/latent", bytes([number]))
        await channel.publish("marker", b"")
        await take(marker)
        assert [message.payload[0] for message in await take(messages, 3)] == [5, 6, 7]
        assert channel.dropped == len(drops) == 5


async def test_publishing_without_connection_raises_at_once(new_channel: Open) -> None:
    channel = new_channel()
    with pytest.raises(TransportError):
        await channel.publish("cam-1/latent", b"x")
    async with channel:
        await channel.wait_connected(LIMIT_S)
    with pytest.raises(TransportError):
        await channel.publish("cam-1/latent", b"x")
    with pytest.raises(TransportError):
        await channel.publish("cam-1/state", b"x", STATE)


async def test_subscriptions_end_when_the_channel_closes(new_channel: Open) -> None:
    async with new_channel() as channel:
        await ready(channel)
        messages = channel.subscribe("cam-1/latent")
    assert [message async for message in messages] == []
    assert [message async for message in channel.subscribe("cam-1/latent")] == []
    assert not channel.connected


async def test_closed_subscription_gets_no_more(new_channel: Open) -> None:
    async with new_channel() as channel:
        closed, open_one = channel.subscribe("cam-1/latent"), channel.subscribe("cam-1/#")
        await ready(channel)
        assert isinstance(closed, Subscription)
        closed.close()
        await channel.publish("cam-1/latent", b"x")
        assert len(await take(open_one)) == 1
        assert [message async for message in closed] == []


async def test_orderly_close_publishes_no_will(new_channel: Open) -> None:
    async with new_channel() as receiver:
        states = receiver.subscribe("+/state")
        await ready(receiver)
        async with new_channel(will=("cam-1/state", b"offline")) as sender:
            await sender.wait_connected(LIMIT_S)
        assert await quiet(states)


async def test_error_in_the_body_goes_up_as_it_is(new_channel: Open) -> None:
    with pytest.raises(ConfigError, match="mine"):
        async with new_channel() as channel:
            await channel.wait_connected(LIMIT_S)
            raise ConfigError("mine")


async def test_cancellation_passes_through(new_channel: Open) -> None:
    async def read() -> None:
        async with new_channel() as channel:
            async for _ in channel.subscribe("cam-1/latent"):
                pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(LIMIT_S):
            await reading


@pytest.mark.parametrize(
    ("wanted", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/bc", False),
        ("a", "a/b", False),
        ("a/b", "a", False),
        ("+/b", "a/b", True),
        ("+", "a/b", False),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab/c", False),
        ("a/+/c", "a/b/c", True),
        ("+/+/#", "a", False),
    ],
)
def test_filter_means_what_mqtt_says(wanted: str, topic: str, expected: bool) -> None:
    assert matches(wanted, topic) is expected
    assert aiomqtt.Topic(topic).matches(wanted) is expected


async def test_memory_loss_follows_its_pattern_and_spares_acknowledged_messages() -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker, loss=[False, True, True]) as sender, MemoryChannel(broker) as receiver:
        messages = receiver.subscribe("#")
        for number in range(5):
            await sender.publish("cam-1/latent", bytes([number]))
            await sender.publish("cam-1/control", b"", CONTROL)
        arrived = await take(messages, 8)
        assert [message.payload[0] for message in arrived if message.payload] == [0, 3, 4]


async def test_memory_loss_may_be_a_function_of_the_number() -> None:
    async with MemoryChannel(MemoryBroker(), loss=lambda number: number % 2 == 1) as channel:
        messages = channel.subscribe("#")
        for number in range(6):
            await channel.publish("cam-1/latent", bytes([number]))
        assert [message.payload[0] for message in await take(messages, 3)] == [0, 2, 4]


async def test_memory_will_is_published_on_abort_and_retained() -> None:
    broker, will = MemoryBroker(), ("cam-1/state", b"offline")
    async with MemoryChannel(broker, will=will) as sender, MemoryChannel(broker) as other:
        states = other.subscribe("+/state")
        await sender.publish("cam-1/state", b"online", STATE)
        sender.abort()
        assert [message.payload for message in await take(states, 2)] == [b"online", b"offline"]
        assert [message.payload for message in await take(other.subscribe("+/state"))] == [b"offline"]
        with pytest.raises(TransportError):
            await sender.publish("cam-1/latent", b"x")


async def test_memory_channels_of_one_name_meet_and_others_do_not() -> None:
    name = os.urandom(4).hex()
    async with (
        open_channel(f"memory://{name}") as one,
        open_channel(f"memory://{name}") as two,
        open_channel(f"memory://{name}-other") as three,
    ):
        heard, unheard = two.subscribe("#"), three.subscribe("#")
        await one.publish("cam-1/latent", b"x")
        assert len(await take(heard)) == 1
        assert await quiet(unheard, 0.05)
