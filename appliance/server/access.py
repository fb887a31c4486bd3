"""The seam where access security plugs in. The server asks; who decides, and how, is not its business."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from appliance.pva import commands as c
from appliance.pva.credentials import Credentials

__all__ = ["ALL_RIGHTS", "NO_RIGHTS", "AccessPolicy", "Rights"]


class Rights(NamedTuple):
    """What a peer may do with a PV, and for the log why not."""

    read: bool = False
    write: bool = False
    rpc: bool = False
    why: str = ""

    @property
    def permissions(self) -> int:
        """The bits of ACL_CHANGE (section 8.2)."""
        return (
            (c.PERMIT_PUT if self.write else 0)
            | (c.PERMIT_PUT_GET if self.write and self.read else 0)
            | (c.PERMIT_RPC if self.rpc else 0)
        )


ALL_RIGHTS: Final = Rights(read=True, write=True, rpc=True)
NO_RIGHTS: Final = Rights()


class AccessPolicy(Protocol):
    """Decides what a peer may do. ``Server.review_access`` has it decide again."""

    def rights(self, name: str, peer: Credentials) -> Rights:
        """Judge. Whatever this raises counts as NO_RIGHTS."""
