"""Groups: structures whose members come from several records, read and written together.

===================  ====================================================================
:mod:`.syntax`        the JSON of group definitions, as lenient as EPICS' own parser
:mod:`.config`        what definitions say, merged from all records and files
:mod:`.layout`        the type of a group, and where each member lies in it
:mod:`.member`        one mapping: a channel and its place
:mod:`.group`         all members, their type, reading them
:mod:`.definitions`   all groups, made from their definitions
:mod:`.feed`          monitors
:mod:`.group_pv`      get, put and monitor
:mod:`.source`        all groups, served
===================  ====================================================================

Source: pvxs documentation ``qgroup.rst``; behaviour of pvxs ``ioc/groupconfigprocessor.cpp``, ``groupsource.cpp``.
"""
