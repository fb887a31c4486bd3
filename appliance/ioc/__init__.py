"""The IOC: the record database of EPICS Base, served over Secure PVAccess.

=================  ==================================================================================================
start              ``daemon``, ``ioc`` (all parts, connected), ``config``, ``loading``, ``script``, ``macros``, ``qsrv_env``;
                   ``trial`` and ``trial_child`` try a start first, ``check`` does only that; ``locate`` finds file and line
records            ``record`` (one open field), ``mapping`` (its structure), ``record_pv`` and ``record_source`` (served),
                   ``options`` (of a PUT), ``prepared`` (GETs answered while they are parsed)
monitors           ``event_stream``, ``feed``, ``number_feed``
groups             ``groups``
access security    ``access`` (judges fields), ``policy`` (what the server asks), ``putlog``;
                   for Channel Access ``ca_rules``, ``channel_access``
shell              ``shell``, ``reports``, ``lines``, ``terminal``, ``console``, ``autosave``, ``epicslog``, ``demo``
database           ``dbcore``: the only place that calls EPICS
=================  ==================================================================================================
"""
