"""The service in one process: opened, started, ticked, reloaded, stopped. The daemon and the tests use it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import msgspec

from appliance.authn.ratelimit import RateLimiter, SharedLimiter
from appliance.certs.crossed import sent_beside
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.x509 import authority_name, pem_chain, serial_number, subject_key_identifier
from appliance.cms.authorities import Authority, Held, introduce
from appliance.cms.availability import Availability
from appliance.cms.config import CMSConfig, CMSSettings, FormerAuthority
from appliance.cms.default_acf import add_administrator, ensure_acf
from appliance.cms.dialect import Login, is_sqlite
from appliance.cms.feed import Feed
from appliance.cms.health import Health
from appliance.cms.hostclock import HostClock
from appliance.cms.issuing import Issuing, TokenVerifier
from appliance.cms.journal import Journal, OthersJournal
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.limits import Rate, Rates, SharedLimits
from appliance.cms.listing import ListPV
from appliance.cms.model import SERVICE, posix
from appliance.cms.nodes import Nodes, check_clock, forget_silent
from appliance.cms.own_certificate import OwnCertificate
from appliance.cms.policy import CertificateGate, Names, Policy, read_acf
from appliance.cms.preload import preload_certificates
from appliance.cms.publisher import Publisher, Successor
from appliance.cms.pvs import CMSSource, Counters, CreatePV, StatusCommands, Tasks
from appliance.cms.reading import Readers
from appliance.cms.replay import StoredReplay, TokenJournal
from appliance.cms.schedule_pv import SchedulePV
from appliance.cms.setup import (
    JOURNAL,
    any_certificate,
    check_not_lost,
    ensure_administrator,
    ensure_authority,
    hold,
    last_recorded,
    make_directory,
    say,
    self_test,
)
from appliance.cms.signing import is_key_of, trouble_of, try_pin
from appliance.cms.store import Store
from appliance.cms.succession import Succession
from appliance.cms.transaction import CertRecord, Transaction
from appliance.cms.upkeep import Upkeep
from appliance.cms.wire_types import root_value
from appliance.config.networks import Networks
from appliance.config.pva import ServerConfig
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError
from appliance.pva.search import GUID_SIZE, node_guid
from appliance.server import Server, SharedPV

__all__ = ["CertificateService", "several_issuers"]

_log: Final = logging.getLogger(__name__)
_FIXED: Final = (
    "db", "db_password", "db_tls_ca", "db_wait_s", "node", "acf", "cert_auth_tls_keychain", "ca_key", "ca_certificate",
)  # fmt: skip
"""Settings that only a start reads."""


class CertificateService:
    """One running certificate service. Make one with `open`."""

    def __init__(
        self,
        settings: CMSSettings,
        server_config: ServerConfig,
        authority: Authority,
        store: Store,
        journal: Journal,
        tokens: TokenJournal,
        clock: Callable[[], datetime],
        *,
        nodes: Nodes | None = None,
        held: Held = Held(),  # noqa: B008 - immutable
    ) -> None:
        self.settings = settings
        self.nodes = nodes
        """This node among those that share the database; None with an embedded database."""
        self.server_config = server_config
        self.authority = authority
        self.held = held
        self.store = store
        self.journal = journal
        self.token_journal = tokens
        self.replay = StoredReplay(store, tokens)
        self.host_clock = host = HostClock() if nodes is None else nodes.clock
        # Who sets this host's clock moves no end, until that is believed.
        self.clock = clock = partial(_by, clock, host)
        self.tasks = Tasks()
        self.names = Names(
            server_config.cert_pv_prefix,
            authority.issuer_id,
            health=settings.health_pv_prefix,
            metrics=settings.metrics_pv_prefix,
            former=tuple(former.issuer_id for former in held.former),
        )
        self.readers = Readers(store.database, fault=store._lost)
        self.lifecycle = Lifecycle(
            store, journal, clock, self.readers, pending_s=settings.pending_approval_ends.seconds
        )
        memory = self.lifecycle.memory
        self.feed = Feed(store.database)
        self.feed.on_change, self.feed.on_all = memory.change, self._all_may_have_changed
        self.feed.on_ends, self.feed.on_look = self.lifecycle.others.take, self._looked
        self.feed.own_head = lambda: store._seen[0] if store._seen is not None else 0
        self.feed.on_restored = self._restored
        self.availability = Availability(store, self.feed, nodes, waits_s=lambda: self.settings.db_wait_s)
        self.succession = Succession(store, self.readers, self.tasks, authority, held, clock)
        self.succession.on_change = self._authorities_changed
        self.feed.on_authority = self.succession.look
        self.availability.clock = host
        self._with_bundle: list[SharedPV] = []
        self._leaves_requests = False
        if nodes is not None:
            self.lifecycle.sweep.rank = lambda: nodes.rank
            self.lifecycle.deliveries.is_alive = nodes.is_alive
        self.lifecycle.clock_fault = host.fault
        self.limits = (
            None
            if is_sqlite(settings.db)
            else SharedLimits(
                partial(store.database.connect, "limits"), cut=store.database.cut, wait_s=settings.db_wait_s
            )
        )
        self.counters = Counters()
        issuer = authority.issuer
        certificates = [
            c for each in (authority, *held.former) for c in (each.issuer.certificate, *each.issuer.chain)
        ]
        self._authority_names = frozenset(map(authority_name, certificates))
        self._authorities = frozenset(certificates)
        self.publisher, *former = (self._publisher(each) for each in (authority, *held.former))
        self.publishers = (self.publisher, *former)
        """The present authority's, and those of former ones."""
        self.issuing = Issuing(
            issuer,
            self.lifecycle,
            self.names,
            settings.rules(),
            reserved=self._reserved,
            former=tuple(each.issuer for each in held.former),
        )
        self.issuing.proven_organizations = self._proven_organizations
        self.own = OwnCertificate(lambda: self.settings, server_config, self.issuing, self.tasks)
        self.own.on_new = self._use_own
        self.issuing.own_keys = self.own.keys
        self.health = Health(store, self.lifecycle, self.issuing, self.publisher, self.counters, nodes)
        self.health.others += [host.trouble, self.availability.unseen]
        self.health.others.append(self.succession.over)
        self.health.warnings.append(self.succession.warning)
        self.health.numbers["certs_former"] = self.succession.certs_former
        self.health.numbers["certs_ending"] = self.succession.certs_ending
        self.health.numbers["certs_watched"] = lambda: len(memory.watched)
        self.health.numbers["feed_lag_ms"] = lambda: self.feed.lag_ms() if self.server else 0
        self.health.numbers["db_reconnects"] = lambda: store.database.reconnects
        for publisher in self.publishers:
            publisher.is_fresh, publisher.gives_up = self.feed.is_fresh, self.availability.gives_up
            publisher.distrusts = host.unsigned
            publisher.has_others = self.availability.has_others
        beside = os.path.dirname(server_config.data_file("certs.db"))  # noqa: PTH120
        self.upkeep = Upkeep(
            settings, store, self.readers, self.health, clock, authority.issuer_id, beside=beside
        )
        if nodes is not None:
            self.upkeep.is_mine = lambda: nodes.rank == 0
        self.upkeep.clock_fault = host.fault
        self.health.others += [
            self.upkeep.audit.trouble,
            self.upkeep.rows.trouble,
            lambda: self.upkeep.pruning,
            lambda: self.own.trouble,
        ]
        self.health.numbers["audit_seq"] = lambda: self.upkeep.audit.last
        self.health.numbers["audit_verified_seq"] = lambda: self.upkeep.audit.verified
        self.health.numbers["certs_checked"] = lambda: self.upkeep.rows.checked
        self.policy: Policy | None = None
        self.server: Server | None = None
        self.source: CMSSource | None = None
        """The PVs that the server has; it exists after the start."""
        self.create: CreatePV | None = None

        store.restored = self._make_good
        store.on_restored = self.lifecycle.memory.change_all
        store.unclaimed = self._unclaimed

    def _unclaimed(self, result: object) -> None:
        """Doubt a new certificate whose requester was told that nobody knows what became of the request."""
        if isinstance(result, CertRecord) and result.delivered == 0:
            self.tasks.start(None, self.lifecycle.doubt(result.serial))

    def _make_good(self, transaction: Transaction, last: tuple[int, str]) -> None:
        """Record again what a database has lost: it was restored, or a standby took over that did not have it all."""
        now = self.clock()
        self.lifecycle.revocations.make_good(transaction, posix(now))
        self.replay.make_good(transaction, now.timestamp())
        introduce(transaction, (self.authority, *self.held.former), now, present=self.authority.issuer_id)
        facts = {**SERVICE.facts(), "node": self.store.node, "last": last[0], "last_hash": last[1]}
        transaction.audit(posix(now), "restored", None, facts)
        _log.warning(
            "the database %s is older than before, or another history of it: revocations and used tokens were recorded again, and "
            "tokens that were issued before now are refused",
            self.store.database.name,
            extra={"event": "database-restored"},
        )

    def _publisher(self, authority: Authority) -> Publisher:
        issuer = authority.issuer
        return Publisher(
            self.lifecycle,
            OCSPSigner(
                issuer.signer,
                issuer.certificate,
                sent_beside(issuer.certificate, issuer.chain, issuer.crossed),
            ),
            issuer=authority.issuer_id,
            validity=_validity(self.settings),
            always_valid=frozenset(map(serial_number, (issuer.certificate, *issuer.chain))),
            successor=None if authority.ends is None else Successor(self.held.since, authority.ends),
        )

    @classmethod
    def open(
        cls, effective: CMSConfig, *, clock: Callable[[], datetime], beside: bool = False
    ) -> CertificateService:
        """Open what exists and make what is missing; nothing is served yet.

        Args:
            effective: The settings.
            clock: Gives the present time, aware.
            beside: For a command that records a certificate, also while the service runs.

        Returns:
            The service.

        Raises:
            ConfigurationError: A setting or a file cannot be used.
            SecurityError: A keychain is not trustworthy.
        """
        settings = effective.settings
        is_file = is_sqlite(settings.db)
        side = settings.db if is_file else effective.server.data_file("certs.db")
        make_directory(side)
        if is_file:
            check_not_lost(settings.db)
        # A command has no part in the life of the nodes.
        node = "" if is_file or beside else settings.node or socket.gethostname()[:64]
        login = None if is_file else Login(settings.db_password, settings.db_tls_ca, node)
        lock = Store(settings.db, "", login=login, side="" if is_file else side, wait_s=settings.db_wait_s)
        # The lock first: two services that start together must not both make an authority.
        lock.open(beside=beside)
        authority = None
        nodes: Nodes | None = None
        try:
            if not is_file:
                lock.run(check_clock)
            if lock.beside and not os.path.lexists(settings.authority_file):
                raise ConfigurationError(  # noqa: TRY301 - the handler below gives the database back
                    "the file does not exist, but a running service uses the database: name the certificate "
                    "authority of that service",
                    file=settings.authority_file,
                )
            authority = ensure_authority(settings, clock(), may_make=not lock.run(any_certificate))
            self_test(authority, clock())
            lock.issuer = authority.issuer_id
            held = hold(lock, settings, authority, clock())
            kind = OthersJournal if lock.beside else Journal
            journal = kind(side + JOURNAL, authority.issuer_id, lock.authorities)
            tokens = TokenJournal(side + ".tokens")
            if node:
                nodes = Nodes(lock)
                nodes.enter()
                nodes.start()
        except BaseException:
            if authority is not None:
                authority.issuer.signer.close()
            lock.close()
            raise
        service = cls(
            settings, effective.server, authority, lock, journal, tokens, clock, nodes=nodes, held=held
        )
        if is_file and not beside:
            service.host_clock.resumes(lock.run(last_recorded) - clock().timestamp())
        if lock.created:
            say(f"Certificate DB created  : {lock._shown()}")
        return service

    def first_start(self, *, ensure: str | None = None) -> None:
        """Make missing keychains and a missing access security file."""
        settings = self.settings
        name = ensure or settings.admin_name
        if self.authority.created or ensure:
            ensure_administrator(settings, self.issuing, name, must_be_new=False)
        if (
            not ensure_acf(settings.acf, self.authority, name)
            and ensure
            and add_administrator(settings.acf, ensure)
        ):
            say(f"Admin user '{ensure}' successfully added to 'CMS_ADMIN'.")
        self.own.ensure()
        preload_certificates(settings.preload, self.issuing)
        # Last, so that what was just recorded counts like any other certificate.
        self.lifecycle.load(self._doubted())
        self.replay.load(self.clock().timestamp())

    def _doubted(self) -> list[str] | None:
        """Return the nodes of whose undelivered certificates nobody knows what became of them; None: all."""
        if self.nodes is not None:
            others = [name for name in self.nodes.alive if name != self.nodes.name]
            # Rows without a node are of a service that was alone.
            return [self.nodes.name] if others else [self.nodes.name, ""]
        return [] if self.store.beside or self.store.database.is_server else None

    async def forget_silent_nodes(self) -> None:
        """Have what dead nodes left behind looked after by one of those that live.

        Raises:
            StoreError: The database could not be used.
        """
        nodes = self.nodes
        if nodes is None or nodes.rank or not nodes.silent:
            return
        at = posix(self.clock())
        for name in await self.store.submit(lambda transaction: forget_silent(transaction, at)):
            _log.warning(
                "node %r is dead since a minute or more; it is a node no more until it starts again",
                name,
                extra={"event": "node-forgotten"},
            )

    async def start(self) -> None:
        """Serve.

        Raises:
            ApplianceError: A file or an address cannot be used; the text says which.
        """
        settings = self.settings
        acf = read_acf(settings.acf)
        for warning in (*settings.warnings(), *acf.warnings, *several_issuers(settings)):
            _log.warning("%s", warning)
        self.policy = Policy(acf, self.names, settings.at_home())
        if self.server_config.tls_options.tls_required:
            _log.warning(
                "tls_required is not applied to this service: clients read the status of certificates, which is signed, over "
                "plain TCP, because some do not yet know whether they can trust TLS"
            )
        self.store.start()
        self.readers.start()
        await self.feed.start(self.lifecycle.known_to)
        self.issuing.tokens = self._tokens(settings)
        await self.succession.read()
        gate = CertificateGate(
            self.lifecycle,
            self.succession.is_issuer,
            self._authorities,
            self._status_is_required,
        )
        gate.is_fresh, gate.gives_up = self.feed.is_fresh, self.availability.gives_up
        server = Server(
            self.server_config,
            policy=self.policy,
            tls=self.own.tls(),
            gate=gate,
            proxied=_proxied(settings),
            guid=node_guid(self.store.id.encode(), os.urandom(GUID_SIZE)) if self.nodes is not None else None,
        )
        commands = StatusCommands(self.lifecycle, self.publishers, self.policy, self.names, self.tasks)
        server.access.on_refused = commands.channel_refused
        self.create = CreatePV(
            self.issuing,
            self.counters,
            self.tasks,
            limiter=_limiter(settings),
            in_flight=settings.ccr_in_flight,
            rates=_rates(settings),
            shared=self.limits,
        )
        issuer = self.authority.issuer
        self.create.refuses = lambda: self.succession.refuses() or self.lifecycle.refuses()
        names, bundle = self.names, self.succession.bundle
        source = CMSSource(names, self.publishers)
        source.is_able = self.availability.is_able
        source.leaves_requests = self.leaves_requests
        source.add(self.create, *names.create)
        root = SharedPV(root_value(names.issuer_id, self.authority.root, (), bundle))
        chain = SharedPV(root_value(names.issuer_id, issuer.certificate, issuer.chain, bundle))
        source.add(root, *names.root)
        source.add(chain, *names.issuer)
        self._with_bundle = [root, chain]
        for each in self.held.former:
            old = root_value(each.issuer_id, each.issuer.certificate, each.issuer.chain, bundle)
            self._with_bundle.append(SharedPV(old))
            source.add(self._with_bundle[-1], names.issuer_of(each.issuer_id))
        health = self.health
        listed = ListPV(self.lifecycle, self.readers, names, self.policy, self.tasks, lambda: health.states)
        source.add(listed, *names.list)
        schedule = SchedulePV(self.lifecycle, names, self.policy, commands, self.tasks)
        source.add(schedule, *names.schedule)
        source.add(self.health.health, *names.health)
        source.add(self.health.metrics, *names.metrics)
        self.source = source
        source.without_database = frozenset((*names.root, *names.issuer, *names.health, *names.metrics))
        self.availability.without_database = source.without_database
        server.add_source("cms", source)
        self.health.others.append(
            lambda: trouble_of(*(a.issuer.signer for a in (self.authority, *self.held.former)))
        )
        self.health.others.append(lambda: self.token_journal.lost)
        self.health.files = {
            settings.authority_file: (
                "the certificate authority's certificate"
                if settings.ca_key
                else "the certificate authority's keychain"
            ),
            self.server_config.tls_keychain: "the service's keychain",
            settings.acf: "the access security file",
        }
        await self.health.check()
        await server.start()
        self.server = self.availability.server = server
        self._introduce()

    def _introduce(self) -> None:
        """Tell the other nodes what peers call this one, and where it is."""
        certificate = None if self.own.keychain is None else self.own.keychain.certificate
        if certificate is None:
            return
        node_id = subject_key_identifier(certificate).hex()[:8]
        for publisher in self.publishers:
            publisher.node = f"{publisher.issuer}:{node_id}"
        if self.nodes is not None and self.server is not None:
            self.nodes.node_id = node_id
            self.nodes.address = f"{socket.gethostname()}:{self.server.tls_port}"

    async def stop(self) -> None:
        """Finish what was begun and close."""
        self.availability.stop()
        if self.server is not None:
            await self.server.stop()
            self.health.stop()
            for publisher in self.publishers:
                await publisher.stop()
            await self.tasks.finish()
            await self.lifecycle.settle()
        if self.limits is not None:
            await self.limits.close()
        await self._close_tokens(self.issuing.tokens)
        self.close()

    def close(self) -> None:
        """Close the database, and let go of the authority's key."""
        if self.nodes is not None:
            self.nodes.stop()
        self.feed.close()
        for authority in (self.authority, *self.held.former):
            authority.issuer.signer.close()
        # The last connection moves the write-ahead log into the file, which one that only reads cannot.
        self.readers.close()
        self.store.close()
        self.journal.close()
        self.token_journal.close()

    def _all_may_have_changed(self) -> None:
        self.lifecycle.memory.change_all()
        self.lifecycle.others.take_all(self.feed.seq)

    def _looked(self) -> None:
        """Do what waits for a database that can be read."""
        self.lifecycle.memory.try_again()
        self.lifecycle.others.go_on()
        self.succession.go_on()
        for publisher in self.publishers:
            publisher.looked()
        leaves = self.succession.successor is not None and self.availability.has_others()
        if leaves and not self._leaves_requests:
            self.availability.send_to_others(self.names.create)
        self._leaves_requests = leaves
        if self.nodes is not None:
            self.nodes.seq = self.feed.seq

    def _authorities_changed(self) -> None:
        """Judge all certificates by the authorities as they are now, and show what verifies them."""
        if self.publisher.successor != self.succession.successor:
            self.publisher.successor = self.succession.successor
            self.publisher.step_back()
        self.lifecycle.memory.change_all()
        text = pem_chain(*self.succession.bundle)
        for pv in self._with_bundle:
            pv.post({"bundle": text})

    def leaves_requests(self) -> bool:
        """Whether requests are left to nodes that have gone over to the authority that has taken over."""
        return self._leaves_requests

    async def _restored(self, _seq: int, _hash: str) -> None:
        """Have the database completed with what this service knows, because it has another history than before."""
        self.store.look_back()
        await self.store.submit(lambda _transaction: None, patient=True)

    async def reload(self, effective: CMSConfig) -> None:
        """Start to use a new configuration and the access security file: all of it or nothing.

        Settings that matter only at a start (addresses, files) stay as they are.

        Raises:
            ApplianceError: The new configuration cannot be used; the service goes on with the old one.
        """
        settings = effective.settings
        acf = read_acf(self.settings.acf)
        changed = [key for key in _FIXED if getattr(settings, key) != getattr(self.settings, key)]
        if _without_pins(settings) != _without_pins(self.settings):
            changed.append("former_authorities")
        if changed:
            raise ConfigurationError(f"{', '.join(changed)} cannot change while the service runs; restart it")
        for warning in (*settings.warnings(), *acf.warnings, *several_issuers(settings)):
            _log.warning("%s", warning)
        assert self.policy is not None
        assert self.create is not None
        assert self.server is not None
        if settings.jwt != self.settings.jwt:
            former, self.issuing.tokens = self.issuing.tokens, self._tokens(settings)
            await self._close_tokens(former)
        await try_pin(self.authority.issuer.signer, settings.ca_key_pin)
        for named in settings.former_authorities:
            for held in self.held.former:
                if named.ca_key and is_key_of(held.issuer.signer, named.ca_key):
                    await try_pin(held.issuer.signer, named.ca_key_pin)
        self.settings = self.upkeep.settings = settings
        self.policy.acf = acf
        self.policy.organizations = settings.at_home()
        self._reserve()
        self.feed.look()
        self.issuing.rules = settings.rules()
        self.lifecycle.wait_for_approval(settings.pending_approval_ends.seconds)
        for publisher in self.publishers:
            publisher.validity = _validity(settings)
        self.create.limits(_limiter(settings), settings.ccr_in_flight, _rates(settings))
        self.server.proxied = _proxied(settings)
        self.server.review_access()

    # -- the clock -----------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Do everything that is due; return whether there is more."""
        self.availability.look()
        return bool(self.lifecycle.tick()) | bool(sum(publisher.tick() for publisher in self.publishers))

    def pause(self, longest_s: float) -> float:
        """Return the seconds until something is due, at most ``longest_s``."""
        now = self.clock().timestamp()
        due = [
            t
            for t in (self.lifecycle.next_crossing(), *(p.next_refresh() for p in self.publishers))
            if t is not None
        ]
        return min(longest_s, max(0.01, min(due, default=now + longest_s) - now))

    # -- its own certificate ------------------------------------------------------------------------

    async def _use_own(self) -> None:
        """Show its new certificate to who connects from now on."""
        if self.server is not None:
            await self.server.set_tls(self.own.tls())
            self._introduce()

    # -- tokens --------------------------------------------------------------------------------------

    def _tokens(self, settings: CMSSettings) -> TokenVerifier | None:
        if not settings.jwt.issuers:
            return None
        from appliance.authn.jwt.verifier import JWTVerifier

        return JWTVerifier(settings.jwt, replay=self.replay, reserved_names=self._reserved())

    async def _close_tokens(self, tokens: TokenVerifier | None) -> None:
        close = getattr(tokens, "close", None)
        if close is not None:
            await close()

    def _reserve(self) -> None:
        reserve = getattr(self.issuing.tokens, "reserve", None)
        if reserve is not None:
            reserve(self._reserved())

    def _status_is_required(self) -> bool:
        return self.issuing.rules.status_extension in ("yes", "default")

    def _proven_organizations(self) -> frozenset[str]:
        """Return the organizations in certificates that come from tokens of the configured issuers."""
        jwt = self.settings.jwt
        if not jwt.issuers:
            return frozenset()
        from appliance.authn.jwt import uri

        # The hosts too: a certificate of a former configuration has its issuer's host.
        hosts = (uri.parse(issuer.name) for issuer in jwt.issuers)
        found = {*jwt.organizations().values(), *(where.host for where in hosts if where is not None)}
        return frozenset(organization.casefold() for organization in found)

    def _reserved(self) -> frozenset[str]:
        """Return names with a meaning: administrators, the service's own and the authorities'."""
        own = self._authority_names | {self.settings.pvacms_name, self.settings.admin_name}
        return own | (self.policy.administrators() if self.policy is not None else frozenset())


def _by(clock: Callable[[], datetime], host: HostClock) -> datetime:
    return host.by_the_steady_one(clock())


def _without_pins(settings: CMSSettings) -> list[FormerAuthority]:
    """Return the former authorities as only a start reads them; a PIN is tried again by a reload."""
    return [msgspec.structs.replace(each, ca_key_pin=Secret()) for each in settings.former_authorities]


def _limiter(settings: CMSSettings) -> RateLimiter:
    clock = time.monotonic
    if not settings.ccr_rate:
        return RateLimiter(settings.ccr_per_minute, settings.ccr_burst, clock=clock)
    overall = RateLimiter(60.0 * settings.ccr_rate, settings.ccr_rate_burst, clock=clock)
    return SharedLimiter(settings.ccr_per_minute, settings.ccr_burst, clock=clock, overall=overall)


def _rates(settings: CMSSettings) -> Rates:
    return Rates(
        Rate(settings.ccr_per_minute, settings.ccr_burst),
        Rate(60.0 * settings.ccr_rate, settings.ccr_rate_burst),
    )


def _proxied(settings: CMSSettings) -> Callable[[str], bool] | None:
    relays = Networks(settings.proxy_from)
    return relays.__contains__ if relays else None


def several_issuers(settings: CMSSettings) -> list[str]:
    """Return what an administrator should know if more than one issuer vouches for names."""
    found = sorted(set(settings.jwt.organizations().values()))
    left = [name for name in found if name not in settings.organizations]
    if len(found) < 2 or not left or "*" in settings.organizations:
        return []
    return [
        (
            f"tokens of {len(found)} organizations are accepted ({', '.join(found)}), and the same name may be another person in "
            f"each: a name alone in the access security file means nobody of {', '.join(left)}; write "
            f'"CN=alice, O={left[0]}" there, or list an organization in the setting organizations. At IOCs a name alone means '
            "the organization of the IOC's own certificate, and those in its setting acf.organizations"
        )
    ]


def _validity(settings: CMSSettings) -> timedelta:
    return timedelta(seconds=settings.cert_status_validity_mins.seconds)
