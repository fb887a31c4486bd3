"""The support that QSRV2's example databases ask for."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.isolated import isolated


@isolated
def test_demo_support_fills_image_sine_and_tag(tmp_path: Path) -> None:
    import numpy as np

    from appliance.ioc import dbcore
    from appliance.ioc.demo import DEMO_DEFINITION, register_demo

    register_demo()
    dbcore.boot()
    dbcore.load_definition_text(DEMO_DEFINITION)
    dbcore.register_support()
    dbcore.load_records_text(
        """
        record(longout, "w") { field(VAL, "120") }
        record(longout, "h") { field(VAL, "70") }
        record(aSub, "image") {
          field(SNAM, "QSRV2_image_demo") field(PINI, "YES") field(FTA, "ULONG") field(FTB, "ULONG")
          field(FTVA, "USHORT") field(NOVA, "10000") field(INPA, "w") field(INPB, "h") field(OUTA, "data PP")
        }
        record(waveform, "data") { field(FTVL, "USHORT") field(NELM, "10000") }
        record(ao, "phase") { field(VAL, "90") }
        record(waveform, "sine") { field(DTYP, "QSRV2 Demo") field(FTVL, "DOUBLE") field(NELM, "200") field(INP, "phase") }
        record(waveform, "ints") { field(DTYP, "QSRV2 Demo") field(FTVL, "LONG") field(NELM, "200") field(INP, "phase") }
        record(longin, "tag") { field(DTYP, "QSRV2 Set UTag") field(INP, "w") }
        """
    )
    dbcore.ioc_init()
    pixels = dbcore.DBChannel("data").get().value
    assert pixels.size == 120 * 70
    image = pixels.reshape(70, 120)
    for line in (0, 48, 49, 50, 69):
        for column in (0, 1, 48, 49, 50, 99, 119):
            grid = line % 50 == 49 or column % 50 == 49
            assert image[line, column] == (65535 if grid else column * 65535 // 120), (line, column)
    dbcore.DBChannel("w").put(121)
    dbcore.DBChannel("h").put(121)
    dbcore.DBChannel("image.PROC").put(1)
    assert dbcore.DBChannel("image").get().severity == 3, "larger than NOVA"

    for name in ("sine", "ints", "tag"):
        dbcore.DBChannel(f"{name}.PROC").put(1)
    sine = dbcore.DBChannel("sine").get()
    assert np.allclose(sine.value, np.cos(np.arange(200) * 2 * np.pi / 100))
    assert sine.user_tag == 1
    ints = dbcore.DBChannel("ints").get()
    assert (dbcore.ALARM_CONDITIONS[ints.status], ints.severity) == ("COMM", 3)
    tag = dbcore.DBChannel("tag").get()
    assert (tag.value, tag.user_tag) == (121, 121)
    dbcore.shutdown()
