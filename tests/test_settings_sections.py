"""Sections of settings: frozen, closed, within limits, and silent about secrets."""

import inspect

import pytest
from pydantic import ValidationError

from pipeline import settings_sections
from pipeline.settings_sections import (
    MqttSection,
    PreviewSection,
    Section,
    SourceSection,
    WebRtcGatewaySection,
    WebRtcSection,
)

SECTIONS = [
    each
    for _, each in inspect.getmembers(settings_sections, inspect.isclass)
    if issubclass(each, Section) and each is not Section
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_section_has_defaults_takes_no_unknown_key_and_cannot_be_changed(section: type[Section]) -> None:
    made = section()
    with pytest.raises(ValidationError, match="Extra inputs"):
        section(no_such_key=1)
    for name in section.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, None)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (SourceSection, {"fps": 0}),
        (PreviewSection, {"jpeg_quality": 101}),
        (MqttSection, {"root": "a/+"}),
        (WebRtcGatewaySection, {"port": 65_536}),
        (WebRtcGatewaySection, {"sessions": 0}),
        (WebRtcSection, {"ice_servers": ["stun:a"] * 9}),
    ],
)
def test_a_value_out_of_range_is_refused(section: type[Section], values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        section(**values)


def test_a_token_is_not_shown() -> None:
    section = WebRtcSection(token="secret")
    assert section.token is not None
    assert section.token.get_secret_value() == "secret"
    assert "secret" not in repr(section) + str(section.model_dump()) + section.model_dump_json()


@pytest.mark.parametrize(
    "given", ["stun:a,turn:u:p@b", "stun:a turn:u:p@b", " stun:a, turn:u:p@b ", ["stun:a", "turn:u:p@b"]]
)
def test_ice_servers_are_a_list_or_a_text(given: object) -> None:
    for section in (WebRtcSection, WebRtcGatewaySection):
        assert section(ice_servers=given).ice_servers == ("stun:a", "turn:u:p@b")
    assert WebRtcSection(ice_servers="").ice_servers == ()
