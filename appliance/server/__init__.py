"""The PVAccess server: Server, Source, SharedPV, monitor queues and the AccessPolicy seam."""
