"""How a person writes a time."""

from __future__ import annotations

from datetime import timedelta

import click
import pytest

from slowjobs.cli import common


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8d", timedelta(days=8)),
        ("12h", timedelta(hours=12)),
        ("90m", timedelta(minutes=90)),
        ("30s", timedelta(seconds=30)),
        ("0.5h", timedelta(minutes=30)),
        ("0d", timedelta()),
    ],
)
def test_a_time_has_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    assert common.DURATION.convert(text, None, None) == expected


@pytest.mark.parametrize(
    "text", ["", "8", "d", "-1d", "8 d", "1d12h", "8w", "1e3d", "nan", "99999d", "9999999999d", "\u0663d"]
)
def test_anything_else_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected"):
        common.DURATION.convert(text, None, None)
