"""The options of a PUT: ``record[process=true|false|passive,block=true|false]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.pvdata.pvrequest import truth
from appliance.server.operation import Operation

if TYPE_CHECKING:
    from appliance.ioc.dbcore import BlockingPut

__all__ = ["PutOptions", "put_options"]


class PutOptions:
    """The options of one PUT."""

    __slots__ = ("atomic", "block", "process", "waiting")

    def __init__(self, process: bool | None, *, block: bool, atomic: bool | None) -> None:
        self.process = process
        """True: always process; False: never; None: as the database says (``passive``)."""
        self.block = block
        """Whether to answer only after all processing has completed."""
        self.atomic = atomic
        """For groups; None means the group's own setting."""
        self.waiting: BlockingPut | None = None


def put_options(operation: Operation) -> PutOptions:
    """Read the options from the pvRequest; the client is told about options that are not understood, and they are ignored."""
    options = operation.options
    asked = options.get("process")
    process = truth(asked)
    if asked is not None and process is None and asked.strip().lower() != "passive":
        operation.warn(f"process={asked[:64]!r} is not understood: use true, false or passive")
    asked = options.get("block")
    block = truth(asked)
    if asked is not None and block is None:
        operation.warn(f"block={asked[:64]!r} is not understood: use true or false")
    # Without processing there is nothing to wait for.
    return PutOptions(
        process, block=bool(block) and process is not False, atomic=truth(options.get("atomic"))
    )
