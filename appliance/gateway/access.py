"""Access security of one server side: who may do what, by the client's real identity.

The rules are judged for the group and level that the PV list gives to a name. They are judged again when an input changes,
when a client's groups become known, when a server changes the gateway's own rights, and when the files are read again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

from appliance.acf import AccessSecurity, Decision, Principal, PrincipalAccess, PVList
from appliance.acf.match import host_of_peer
from appliance.client.context import Context
from appliance.client.inputs import ExternalInputs
from appliance.gateway.config import ServerSide
from appliance.gateway.report import Judgement, Row
from appliance.gateway.route import Route, Router
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.server.access import Rights
from appliance.server.channel import Channel

__all__ = ["GatewayAccess"]

_log: Final = logging.getLogger(__name__)
_MAX_PEERS: Final = 4096
_NOT_APPLIED: Final = ": does not apply: "
"""What `Decision.why` says of a rule that does not hold for a client."""
_READ_ONLY: Final = "read_only is set in the gateway's configuration"
_NAMED: Final = 5
"""The most names in one line of the log."""

Review = Callable[[Callable[[Channel], bool] | None], None]


class GatewayAccess:
    """Decides what a client may do with a PV of one server side; the server's `AccessPolicy`.

    Args:
        name: The server side's name.
        side: Its configuration.
        router: Its PV list.
        security: The rules; None permits everything that the PV list allows.
        read_only: Refuse everything that may change something.
    """

    def __init__(
        self, name: str, side: ServerSide, router: Router, security: AccessSecurity | None, *, read_only: bool
    ) -> None:
        self.name = name
        self.permitted: Callable[[Route], int] = _everything
        """Returns what the server of a PV permits the gateway itself: a union of ``PERMIT_*``."""
        self.review: Review | None = None
        """Makes the server judge some channels again, or all."""
        self._router = router
        self._take(side, security, read_only=read_only)
        self._values: dict[str, float | None] = {}
        self._inputs: ExternalInputs | None = None

    def _take(self, side: ServerSide, security: AccessSecurity | None, *, read_only: bool) -> None:
        self._side = side
        self.has_rules = security is not None
        self.security = AccessSecurity.unrestricted() if security is None else security
        self._read_only = read_only
        self._organizations = frozenset(side.access.organizations)
        self._traps = any(rule.trapwrite for group in self.security.groups.values() for rule in group.rules)
        self._peers: dict[Credentials, PrincipalAccess] = {}

    # -- life ----------------------------------------------------------------------------------------

    def follow(self, context: Context | None) -> None:
        """Follow the inputs of the rules through a client side; None if the server side has none."""
        if context is not None:
            self._inputs = ExternalInputs(self.input_changed, lambda: nullcontext(context))
        self._follow()

    def _follow(self) -> None:
        wanted = {pv for group in self.security.groups.values() for pv in group.inputs.values()}
        for name in self._values.keys() - wanted:
            del self._values[name]
        if self._inputs is not None:
            self._inputs.follow(sorted(wanted))
        elif wanted:
            _log.warning(
                "servers.%s: no client side to read the inputs of access security (%s); rules that use them do not hold",
                self.name,
                ", ".join(sorted(wanted)[:_NAMED]),
            )

    def use(self, side: ServerSide, security: AccessSecurity | None, *, read_only: bool) -> None:
        """Use other rules from now on; the caller judges the channels again."""
        self._take(side, security, read_only=read_only)
        self._follow()

    async def close(self) -> None:
        """Stop following the inputs."""
        if self._inputs is not None:
            await self._inputs.close()

    def report(self, pvlist: PVList | None) -> None:
        """Log what the rules apply to, and which groups nobody can read under them.

        Args:
            pvlist: The PV list, which says the groups that are used.
        """
        if self._read_only:
            _log.info("servers.%s: read only: puts and RPCs are refused to everybody", self.name)
        if not self.has_rules:
            return
        enforced = self._side.enforce_read
        if enforced:
            _log.info("access security file %s: its rules apply to reading and writing", self.security.file)
        else:
            _log.info(
                "access security file %s: its rules apply to writing only, as in p4p's gateway; to apply them to reading too, "
                "set servers.%s.enforce_read to true in the YAML file",
                self.security.file,
                self.name,
            )
        used = pvlist.groups if pvlist is not None else frozenset(("DEFAULT",))
        hidden = sorted(group for group in used if not self.security.is_readable(group))
        if hidden:
            more = f" and {len(hidden) - _NAMED} more" if len(hidden) > _NAMED else ""
            groups = ", ".join(f"ASG({group})" for group in hidden[:_NAMED]) + more
            _log.log(
                logging.WARNING if enforced else logging.INFO,
                "%s PVs of %s: no rule lets anybody read them; add RULE(1,READ) to let everybody read",
                "nobody can read" if enforced else "with enforce_read, nobody could read",
                groups,
            )

    # -- judging -------------------------------------------------------------------------------------

    def route(self, name: str, peer: Credentials) -> Route | None:
        """Return where a name leads for a client; None if the PV list denies it."""
        host = host_of_peer(peer.peer)
        return (
            self._router.own_route(name, host)
            if self._router.is_own(name)
            else self._router.route(name, host)
        )

    def decide(self, route: Route, peer: Credentials) -> Decision:
        """Return what the rules say of a client and a PV."""
        compiled = self._peers.get(peer)
        if compiled is None:
            if len(self._peers) >= _MAX_PEERS:
                self._peers.clear()
            principal = Principal.of(peer, self._organizations)
            compiled = self._peers[peer] = self.security.compile_for(principal)
        access = compiled.access(route.asg, route.asl)
        if not access.inputs:
            return access.decide()
        return access.decide({letter: self._values.get(pv) for letter, pv in access.inputs.items()})

    def rights(self, name: str, peer: Credentials) -> Rights:
        """Return a client's rights, for the server: what the rules grant and the PV's server permits the gateway."""
        route = self.route(name, peer)
        if route is None:
            return Rights(why="the PV list denies it")
        decision = self.decide(route, peer)
        read = decision.read or not self._side.enforce_read
        if self._router.is_own(name):
            return Rights(read, decision.write, decision.rpc, "; ".join(decision.why))
        if self._read_only:
            return Rights(read, why="the gateway is read only", unchangeable=_READ_ONLY)
        permitted = self.permitted(route)
        return Rights(
            read,
            decision.write and bool(permitted & c.PERMIT_PUT),
            decision.rpc and bool(permitted & c.PERMIT_RPC),
            "; ".join(decision.why),
        )

    def may_bypass(self, name: str, peer: Credentials) -> bool:
        """Whether a client may have a subscription of its own at the server (UNCACHED)."""
        route = self.route(name, peer)
        return route is not None and not self._read_only and self.decide(route, peer).uncached

    def why(self, name: str, peer: Credentials, right: str) -> str:
        """Return why a client does not have a right, for the log.

        Args:
            name: The PV's name as the client has it.
            peer: The client.
            right: ``read``, ``write``, ``rpc`` or ``uncached``.
        """
        route = self.route(name, peer)
        if route is None:
            return "the PV list denies it"
        decision = self.decide(route, peer)
        if not self._router.is_own(name):
            if self._read_only and right != "read":
                return _READ_ONLY
            if (right == "write" and decision.write) or (right == "rpc" and decision.rpc):
                return (
                    "its server does not permit it to the gateway; that server's rules must name the gateway"
                )
        missing = [line for line in decision.why if _NOT_APPLIED in line]
        return "; ".join(missing) or "no rule grants it: " + "; ".join(decision.why)

    def traps(self, name: str, peer: Credentials) -> bool:
        """Whether a client's put must be logged."""
        if not self._traps:
            return False
        route = self.route(name, peer)
        return route is not None and self.decide(route, peer).trapwrite

    # -- the status PVs ------------------------------------------------------------------------------

    def judge(self, name: str, peer: Credentials) -> Judgement | None:
        """Return what ``peer`` may do with the PV ``name``; None if the PV list denies it.

        It is what a request would get: also refused is what ``read_only`` forbids, or the PV's server forbids the gateway.
        """
        route = self.route(name, peer)
        if route is None:
            return None
        rights = self.rights(name, peer)
        decision = self.decide(route, peer)._replace(
            write=rights.write, rpc=rights.rpc, uncached=self.may_bypass(name, peer)
        )
        return Judgement(route.asg, route.asl, decision)

    def inputs(self) -> list[Row]:
        """Return the inputs of the rules, with their values."""
        return [
            Row(group.name, letter, self._values.get(pv) or 0.0, self._values.get(pv) is not None)
            for group in self.security.groups.values()
            for letter, pv in sorted(group.inputs.items())
        ]

    # -- changes -------------------------------------------------------------------------------------

    def input_changed(self, name: str, value: float | None) -> None:
        """Store a new value of an input, and judge again the channels that depend on it."""
        if name in self._values and self._values[name] == value:
            return
        self._values[name] = value
        concerned = {group.name for group in self.security.groups.values() if name in group.inputs.values()}
        if self.review is not None:
            self.review(lambda channel: self._group_of(channel) in concerned)

    def _group_of(self, channel: Channel) -> str:
        route = self.route(channel.name, channel.peer)
        return "" if route is None else self.security.group(route.asg).name


def _everything(route: Route) -> int:
    del route
    return c.PERMIT_ALL
