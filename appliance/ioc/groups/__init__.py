"""Groups: structures whose members come from several records, read and written together.

==============  ====================================================================
:mod:`.syntax`   the JSON of group definitions, as lenient as EPICS' own parser
:mod:`.config`   what definitions say, merged from all records and files
:mod:`.layout`   the type of a group, and where each member lies in it
:mod:`.group`    get, put and monitor
==============  ====================================================================

Source: pvxs documentation ``qgroup.rst``; behaviour of pvxs ``ioc/groupconfigprocessor.cpp``, ``groupsource.cpp``.
"""
