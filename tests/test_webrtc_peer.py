"""One end of a connection by itself: what it says where servers that are to help do not."""

import pytest
from peers import ignore

from pipeline.errors import TransportError
from pipeline.transport.webrtc_address import WebRtcOptions, parse_ice_url
from pipeline.transport.webrtc_peer import Peer

NOBODY = parse_ice_url("turn:cam:secret@127.0.0.1:1?transport=tcp")


async def test_a_turn_server_that_gives_no_address_is_named_when_no_connection_comes() -> None:
    options = WebRtcOptions(ice_servers=(NOBODY,), open_s=0.1)
    async with Peer(options, on_latent=ignore, on_message=ignore) as peer:
        await peer.offer()
        with pytest.raises(TransportError, match="ICE is new; the turn: server gave no address") as raised:
            await peer.opened()
        assert "secret" not in str(raised.value)


async def test_without_the_turn_server_that_all_must_go_through_there_is_no_offer() -> None:
    options = WebRtcOptions(ice_servers=(NOBODY,), relay_only=True)
    async with Peer(options, on_latent=ignore, on_message=ignore) as peer:
        with pytest.raises(TransportError, match="the turn: server gave no address"):
            await peer.offer()


@pytest.mark.parametrize("line", ["a=fmtp:99 x=1", "a=rtcp-fb:99 nack", "a=rtpmap:99 x/y/z"])
async def test_an_answer_that_is_none_is_an_error_of_its_own(line: str) -> None:
    answer = f"v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n{line}\r\n"
    async with Peer(WebRtcOptions(), on_latent=ignore, on_message=ignore) as peer:
        await peer.offer()
        with pytest.raises(TransportError, match="answer is not one"):
            await peer.accept(answer)
