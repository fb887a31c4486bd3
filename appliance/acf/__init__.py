"""EPICS access security and pvlist: files in, decisions out. Pure."""
