"""``-F nt``: one line for people."""

from __future__ import annotations

import time

import pytest

from appliance.cli.common import array_limit, shown
from appliance.cli.pvxget import parser
from appliance.errors import ConfigurationError
from appliance.pvdata import FLOAT64, INT32, STRING, ArrayType, StructType, Value
from appliance.pvdata.nt import NTEnum, NTScalar

WHEN = 1_795_919_533


def test_a_number_has_name_local_time_units_and_alarm() -> None:
    value = Value(
        NTScalar(FLOAT64, display=True),
        {
            "value": 21.53125,
            "timeStamp.secondsPastEpoch": WHEN,
            "timeStamp.nanoseconds": 123_456_789,
            "display.units": "°C",
            "alarm.severity": 1,
            "alarm.message": "HIGH",
        },
    )
    local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(WHEN))
    assert shown("room:T", value, "", "nt", 20) == f"{'room:T':<30}  {local}.123  21.53125  °C  MINOR HIGH\n"
    assert shown("room:T", value, "field(value)", "nt", 20) == f"{'room:T':<30}  21.53125\n"


def test_a_choice_is_shown_by_its_text() -> None:
    value = Value(NTEnum(), {"value.choices": ("geschlossen", "geöffnet"), "value.index": 1})
    assert shown("v", value, "field(value)", "nt", 20).split() == ["v", "geöffnet"]
    value["value.index"] = 7
    assert shown("v", value, "field(value)", "nt", 20).split(maxsplit=1) == [
        "v",
        "7 (not one of 2 choices)\n",
    ]


@pytest.mark.parametrize(
    ("kind", "item", "text"),
    [
        (STRING, "héllo", "héllo"),
        (STRING, "a\x1b[31mb\n", "a\\x1b[31mb\\n"),
        (INT32, -3, "-3"),
        (ArrayType(INT32), [1, 2, 3, 4], "[1, 2, ... 4 in all]"),
        (ArrayType(FLOAT64), [], "[]"),
        (FLOAT64, float("nan"), "NaN"),
    ],
)
def test_values_of_every_kind(kind: object, item: object, text: str) -> None:
    value = Value(NTScalar(kind), {"value": item})  # type: ignore[arg-type]
    assert shown("x", value, "field(value)", "nt", 2).removeprefix("x").strip() == text


def test_precision_is_used_where_the_server_tells_it() -> None:
    from appliance.pvdata.nt import display_type

    kind = StructType([("value", FLOAT64), ("display", display_type(FLOAT64, form=True))])
    value = Value(kind, {"value": 1 / 3, "display.precision": 3})
    assert shown("x", value, "", "nt", 2).split() == ["x", "0.333"]


@pytest.mark.parametrize("seconds", [0, -1, 1 << 62])
def test_odd_times_are_no_error(seconds: int) -> None:
    value = Value(NTScalar(INT32), {"value": 1, "timeStamp.secondsPastEpoch": seconds})
    assert shown("x", value, "", "nt", 2).endswith("  1\n")


def test_what_has_no_short_form_is_a_tree() -> None:
    value = Value(StructType([("x", INT32)]), {"x": 1})
    assert shown("s", value, "", "nt", 20) == shown("s", value, "", "tree", 20)


def test_a_setting_chooses_the_form_and_an_option_counts_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPVA_FORMAT", "nt")
    assert array_limit(parser().parse_args(["x"])) == ("nt", 20)
    assert array_limit(parser().parse_args(["-F", "delta", "x"])) == ("delta", 20)
    assert array_limit(parser().parse_args(["--json", "x"])) == ("delta", 20)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("SPVA_FORMAT", "short")
    assert array_limit(parser().parse_args(["x"])) == ("delta", 20)
    assert capsys.readouterr().err == (
        "Warning: ignoring unknown format 'short' of SPVA_FORMAT; known are delta, tree, nt\n"
    )
    with pytest.raises(ConfigurationError, match="-F has no effect with --json"):
        array_limit(parser().parse_args(["--json", "-F", "nt", "x"]))
