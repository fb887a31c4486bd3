"""The Python API of p4p on this project's own client and server, so that its programs can use TLS.

A program changes one line, or none::

    from appliance.p4p.client.thread import Context

    with Context("pva") as ctxt:
        print(ctxt.get("pv:name"))

``python -m appliance.p4p program.py`` runs a program with ``p4p`` meaning this package. Keychains and all other settings come
from the same ``EPICS_PVA_*`` variables as those of the tools, or from ``conf=``.
"""
