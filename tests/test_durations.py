"""Durations carry units."""

import pytest

from herald import ConfigError
from herald.durations import format_ns, parse_duration


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("50ms", 50_000_000),
        ("1.5s", 1_500_000_000),
        ("250 us", 250_000),
        ("2min", 120_000_000_000),
        ("7ns", 7),
        ("3\u00b5s", 3_000),
        ("3\u03bcs", 3_000),
    ],
)
def test_a_duration_with_a_unit_is_read(text: str, expected_ns: int) -> None:
    assert parse_duration(text) == expected_ns


@pytest.mark.parametrize(
    "text", ["50", "-5ms", "0s", "fast", "", "5 parsecs", "25h", "1e3s", "90000s", "9" * 400 + "s", "0.1ns", 50, None]
)
def test_anything_else_is_an_error_that_names_setting_value_and_what_is_allowed(text: object) -> None:
    with pytest.raises(ConfigError, match="slo") as caught:
        parse_duration(text, setting="slo")
    assert repr(text) in str(caught.value)
    assert "50ms" in str(caught.value)


@pytest.mark.parametrize(
    ("value_ns", "text"),
    [(12, "12 ns"), (9_400, "9.4 us"), (52_345_000, "52.3 ms"), (999_900_000, "1 s"), (90_000_000_000, "90 s")],
)
def test_durations_are_written_with_three_digits(value_ns: int, text: str) -> None:
    assert format_ns(value_ns) == text
