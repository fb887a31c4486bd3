"""The page about moving from p4p's gateway names every key and every option of p4p's."""

from __future__ import annotations

from pathlib import Path

from p4p import gw

from appliance.gateway import p4p_json

PAGE = (Path(__file__).parents[3] / "docs/how-to/move-from-p4p-gateway.md").read_text()


def test_every_key_is_named():
    keys = {*p4p_json._TOP_KEYS, *p4p_json._CLIENT_KEYS, *p4p_json._SERVER_KEYS} - {"clients", "servers"}
    assert [key for key in sorted(keys) if f"{key}`" not in PAGE] == []


def test_every_option_is_named():
    options = {option for action in gw.getargs()._actions for option in action.option_strings} - {
        "-h",
        "--help",
    }
    assert [option for option in sorted(options) if f"`{option}" not in PAGE] == []
