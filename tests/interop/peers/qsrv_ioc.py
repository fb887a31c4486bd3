"""An IOC: EPICS Base (epicscorelibs) with QSRV2 (pvxslibs). Arguments: the .db and the .acf file."""

import ctypes
import sys

import pvxslibs.path
from common import say, serve
from epicscorelibs import ioc, path
from setuptools_dso import find_dso

database, access = sys.argv[1:3]
for name in (
    "pvxslibs.lib.event_core",
    "pvxslibs.lib.event_pthread",
    "pvxslibs.lib.pvxs",
    "pvxslibs.lib.pvxsIoc",
):
    ctypes.CDLL(find_dso(name), ctypes.RTLD_GLOBAL)
ioc.iocshRegisterCommon()
for file, directory in (
    ("base.dbd", path.base_path + "/dbd"),
    ("pvxsIoc.dbd", pvxslibs.path.dbd_path),
):
    if ioc.dbLoadDatabase(file.encode(), directory.encode(), None):
        say(error=f"cannot load {file}")
        sys.exit(1)
ioc.registerRecordDeviceDriver(ioc.pdbbase)
ioc.ioc(f'asSetFilename("{access}")')
if ioc.dbLoadRecords(database.encode(), b""):
    sys.exit(1)
if ioc.iocInit():
    sys.exit(1)
serve({"sh": ioc.ioc})
