"""autosave: values that are saved while the IOC runs and restored when it starts.

This is our own implementation, since autosave is C code for an IOC that is built from source. The files have the same format, so
that each IOC can read the files of the other. Only records of this IOC are saved.

=================  =====================================================
:mod:`.savefile`    the format of save files and request files
:mod:`.files`       where they are, reading and writing them
:mod:`.saving`      sets of PVs, saved in a thread
:mod:`.restoring`   save files, put back into records
:mod:`.commands`    the commands of the shell
=================  =====================================================
"""
