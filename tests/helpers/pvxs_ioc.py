"""The reference IOC (pvxslibs' QSRV2) as a process: ``python pvxs_ioc.py MACROS DB... -- JSON...``; ends with its stdin."""

from __future__ import annotations

import ctypes
import os
import sys

os.environ.setdefault("PVXS_QSRV_ENABLE", "YES")

import pvxslibs.path
from epicscorelibs import ioc
from setuptools_dso import find_dso


def main(macros: str, files: list[str]) -> None:
    """Load, initialise, say so, and wait."""
    split = files.index("--")
    ctypes.CDLL(find_dso("pvxslibs.lib.pvxsIoc"), ctypes.RTLD_GLOBAL)
    ioc.iocshRegisterCommon()
    definitions = ((b"base.dbd", ioc.DEFAULT_DBD_PATH), (b"pvxsIoc.dbd", pvxslibs.path.dbd_path))
    for name, folder in definitions:
        if ioc.dbLoadDatabase(name, folder.encode(), None):
            raise SystemExit(f"{name!r} cannot be loaded")
    ioc.registerRecordDeviceDriver(ioc.pdbbase)
    for file in files[:split]:
        if ioc.dbLoadRecords(file.encode(), macros.encode()):
            raise SystemExit(f"{file} cannot be loaded")
    for file in files[split + 1 :]:
        ioc.ioc(f'dbLoadGroup("{file}", "{macros}")')
    if ioc.iocInit():
        raise SystemExit("iocInit failed")
    print("READY", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
