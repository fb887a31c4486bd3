"""The IOC: the record database of EPICS Base, served over Secure PVAccess."""
