"""Configuration files of a gateway that somebody has damaged: one sentence, never a crash."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import ConfigurationError
from appliance.gateway.convert import converted
from appliance.gateway.p4p_json import load_config
from tests.unit.gateway.test_p4p_json import TWO_NETWORKS

PIECES = st.sampled_from(
    ['"', "{", "}", "[", "]", ",", ":", "/*", "*/", "\\", "null", "true", "1e999", "-1", "99999999999999999999", "NaN", "\\ud800", "\0",
     '"version":3,', '"clients":[],', '"name":"é",', '"serverport":"x",', '"EPICS_PVA_TLS_OPTIONS":"x=y",', "${file:/x}", "\u2028", " "]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(TWO_NETWORKS)), st.integers(0, 30), PIECES | st.text(max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_file_is_refused_or_read(tmp_path_factory, edits):
    text = TWO_NETWORKS
    for at, cut, piece in edits:
        text = text[:at] + piece + text[at + cut :]
    file = Path(tmp_path_factory.getbasetemp()) / "damaged.conf"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        loaded = load_config(str(file), environ={})
        loaded.sides(environ={})
    except ConfigurationError as error:
        said = str(error)
    else:
        said = f"{file}: {converted(loaded)}"
    assert said.startswith(f"{file}:")
