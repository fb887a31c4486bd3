"""PVA links: records that read and write PVs of other servers, ``{pva:{pv:"name", ...}}`` in a link field.

===================  ========================================================================================
:mod:`.options`       the keys of a link, as the database writes them
:mod:`.values`        values of PVAccess as EPICS wants them, and back
:mod:`.places`        where a PV's structure holds value, alarm, time and limits
:mod:`.batch`         what one PUT writes, for several links
:mod:`.channel`       one PV with its links: present value, puts that wait, records to process
:mod:`.link`          one link of a record, as EPICS uses it
:mod:`.worker`        the thread that processes records
:mod:`.local`         PVs of this IOC, without the network
:mod:`.remote`        PVs of other servers
:mod:`.report`        the report of ``dbpvar``
:mod:`.all_links`     all links of the IOC
===================  ========================================================================================

Three kinds of threads meet here. The event loop brings new values and does puts. The worker processes records. Threads of EPICS call
the functions of :mod:`.link` while they hold a record's lock. Locks are taken in this order, never the other way round:

1. locks of records (dbScanLock): by EPICS before it calls, and by the worker and the loop, who hold none of the locks below then;
2. the lock of :class:`.all_links.AllLinks`;
3. the lock of a :class:`.channel.LinkChannel`.

Under the last two nobody waits for anything, and no function of EPICS is called. So a record's lock never waits for the network.

Source: documentation of pvxs, ``pvalink.rst``; behaviour of pvxs ``ioc/pvalink*.cpp``.
"""
