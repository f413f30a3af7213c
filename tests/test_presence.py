"""What nodes say of themselves: online, what was learned later, stopped, and offline when they die."""

import json
from dataclasses import asdict, replace

from nodes.control import InForce
from nodes.presence import Presence, announced
from nodes.reports import State, read_report
from pipeline.transport.memory import MemoryBroker, MemoryChannel

PRESENCE = Presence(topic="cam-1/state", bundle="ab", width=64, height=48, transport="memory", since=5, fps=25.0)


async def test_a_node_says_online_and_then_stopped() -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker, will=PRESENCE.will) as channel:
        async with announced(channel, PRESENCE):
            state = json.loads(broker.retained["maskcast/cam-1/state"])
            assert state["state"] == "online"
        assert json.loads(broker.retained["maskcast/cam-1/state"])["state"] == "stopped"
    assert state == {
        "state": "online",
        "bundle": "ab",
        "width": 64,
        "height": 48,
        "fps": 25.0,
        "transport": "memory",
        "since": 5,
        "source_width": None,
        "source_height": None,
        "source": None,
        "control": None,
        "refused": None,
        "zones": None,
    }


def test_what_a_node_says_is_read_whole() -> None:
    control = InForce(quality=3, pause=True, max_fps=5.0, max_kbit_s=None)
    told = replace(PRESENCE, source="ok", source_width=640, source_height=360, control=control, refused="no")
    read = read_report(State, told.payload("online")).model_dump()
    assert {**read, "topic": told.topic} == {**asdict(told), "state": "online", "path": None}


async def test_what_was_learned_later_is_said_too_and_once_more_at_the_end() -> None:
    broker = MemoryBroker()

    def said() -> tuple[str, int | None]:
        facts = json.loads(broker.retained["maskcast/cam-1/state"])
        return facts["state"], facts["source_width"]

    async with MemoryChannel(broker) as channel:
        async with announced(channel, PRESENCE) as renew:
            assert said() == ("online", None)
            await renew(replace(PRESENCE, source_width=640))
            assert said() == ("online", 640)
        assert said() == ("stopped", 640)


def test_a_nodes_client_id_is_its_own_and_the_same_at_each_start() -> None:
    assert PRESENCE.client_id("maskcast") == "maskcast.cam-1"
    assert replace(PRESENCE, topic="worker/a.b/state").client_id("site/hall") == "site.hall.worker.a.b"


async def test_a_node_that_dies_is_said_to_be_offline() -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker, will=PRESENCE.will) as channel, announced(channel, PRESENCE):
        channel.abort()
        assert json.loads(broker.retained["maskcast/cam-1/state"])["state"] == "offline"
