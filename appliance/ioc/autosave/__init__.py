"""autosave: values that are saved while the IOC runs and restored when it starts.

An implementation of our own, since autosave is C code for an IOC that is built from source. Files have its format, so
those that another IOC has written are read here and the other way round. Only records of this IOC are saved.

=================  =====================================================
:mod:`.savefile`    the format of save files and request files
:mod:`.files`       where they are, reading and writing them
:mod:`.saving`      sets of PVs, saved in a thread
:mod:`.restoring`   save files, put back into records
:mod:`.commands`    the commands of the shell
=================  =====================================================
"""
