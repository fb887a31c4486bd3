"""A keeper at services that are odd: as pvxs-cms of 2026, without answers, with limits. What is promised: one request for each cause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.authn.live.keeper import Keeper, Kept
from appliance.authn.live.plan import Failure
from appliance.authn.requester import Requester, Trusting
from appliance.authn.settings import resolve_requester
from appliance.certs.keychain import dump_keychain
from appliance.certs.status import CertState
from appliance.cms.wire_types import root_value
from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import RemoteError
from appliance.pvdata import STRING, UINT64, StructType, Value
from appliance.server import Operation, SharedPV
from tests.helpers.keepers import Names, keeping
from tests.helpers.live import until
from tests.helpers.pki import DAY, NOW, site
from tests.helpers.status_service import StatusService

S = site()
MINE = S.ca.keychain("operator", status=True, not_after=NOW + 300 * DAY)
ANSWER = StructType((("issuer", STRING), ("serial", UINT64), ("state", STRING), ("renew_by", UINT64)))
LATE = 60.0
OVERDUE, VALID = CertState.PENDING_RENEWAL, CertState.VALID


def epics(when: datetime) -> int:
    return int(when.timestamp()) - EPICS_EPOCH_S


def soon(**duration: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(**duration)


class Service(StatusService):
    """CERT:ROOT, CERT:STATUS of one certificate, and a CERT:CREATE that a test writes."""

    def __init__(self, create: Callable[[Service], Any]) -> None:
        super().__init__(S.ca)
        self.calls = 0
        self.keys: list[str] = []
        """The public keys of the requests."""
        self.create = create
        self.pvs["CERT:ROOT"] = SharedPV(root_value(S.ca.issuer_id, S.ca.certificate, ()))
        self.pvs[f"CERT:CREATE:{S.ca.issuer_id}"] = SharedPV(on_rpc=self._rpc)

    async def _rpc(self, pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
        self.calls += 1
        assert argument is not None
        self.keys.append(argument["query.pub_key"])
        answer: Value = await self.create(self)
        return answer

    def tell(self, state: CertState, by: datetime | None = None, **more: Any) -> None:
        self.set(MINE, state, renew_by=0 if by is None else epics(by), **more)

    @staticmethod
    def renewed(state: CertState, by: datetime) -> Value:
        return Value(
            ANSWER,
            {"issuer": S.ca.issuer_id, "serial": MINE.serial, "state": str(state), "renew_by": epics(by)},
        )


@asynccontextmanager
async def kept_by(
    service: Service, directory: Path, *, timeout_s: float = LATE
) -> AsyncIterator[tuple[Keeper, Kept, Names]]:
    path = directory / "k.p12"
    path.touch(mode=0o600)
    path.write_bytes(dump_keychain(MINE))
    settings = resolve_requester(
        "client",
        {"keychain": str(path), "name": "operator", "organization": "localhost"},
        {
            "XDG_CONFIG_HOME": str(directory),
            "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{service.udp_port}",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        },
    )
    settings = settings._replace(country="")
    asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=timeout_s)
    names = Names()
    async with keeping(asking, maker=names) as keeper:
        yield keeper, keeper.kept[0], names


async def test_the_answer_of_pvxs_cms_is_understood_and_its_late_statuses_cause_nothing(
    tmp_path: Path,
) -> None:
    by = soon(hours=1)

    async def create(service: Service) -> Value:
        return service.renewed(OVERDUE, by)

    service = Service(create)
    service.tell(OVERDUE, soon(seconds=-60))
    async with service, kept_by(service, tmp_path) as (_, kept, names):
        await until(lambda: kept.facts.renew_by == by, LATE)
        assert (kept.facts.state, names.answered) == (VALID, 1)
        # On its way since before the renewal, and the next one is what the service says of it.
        service.tell(OVERDUE, soon(seconds=-60), renewal_due=True)
        service.tell(VALID, by, renewal_due=True)
        await until(lambda: kept.facts.hinted is not None, LATE)
        assert (service.calls, kept.facts.state, kept.facts.renew_by) == (1, VALID, by)
        assert "VALID, renew by" in kept.status_line()


async def test_an_answer_that_was_lost_is_found_in_the_status(tmp_path: Path) -> None:
    by = soon(hours=1)

    async def create(service: Service) -> Value:
        service.tell(VALID, by)
        await asyncio.Event().wait()
        raise AssertionError

    service = Service(create)
    service.tell(OVERDUE, soon(seconds=-60))
    async with service, kept_by(service, tmp_path, timeout_s=2.0) as (_, kept, names):
        await until(lambda: names.answered, LATE)
        assert (service.calls, kept.past.failures, kept.facts.renew_by) == (1, 0, by)


async def test_a_service_that_moves_nothing_is_not_asked_in_a_loop(tmp_path: Path) -> None:
    past = soon(seconds=-60)

    async def create(service: Service) -> Value:
        return service.renewed(OVERDUE, past)

    service = Service(create)
    service.tell(OVERDUE, past)
    async with service, kept_by(service, tmp_path) as (_, kept, _names):
        await until(lambda: kept.past.failures, LATE)
        assert (service.calls, kept.past.kind) == (1, Failure.REFUSED)
        assert kept.past.pause_s >= 48
        assert "without moving its renew-by date" in kept.status_line()


async def test_a_certificate_that_never_arrived_is_followed_by_one_with_another_key(tmp_path: Path) -> None:
    """The service renews what this key has; if that answer was lost, the keychain cannot have the certificate."""

    async def create(service: Service) -> Value:
        if service.calls > 1:
            raise RemoteError("not now")
        answer = service.renewed(VALID, soon(hours=1))
        answer["serial"] = MINE.serial + 1
        return answer

    service = Service(create)
    service.tell(OVERDUE, soon(seconds=-60))
    async with service, kept_by(service, tmp_path) as (keeper, kept, names):
        await until(lambda: kept.past.failures, LATE)
        assert "is not the one in" in kept.status_line()
        assert names.answered == 1, "a token that served is not sent again"
        keeper.look_now()
        await until(lambda: service.calls == 2, LATE)
        assert service.keys[0] != service.keys[1]
        await until(lambda: names.answered == 2, LATE)
        keeper.look_now()
        await until(lambda: service.calls == 3, LATE)
        assert service.keys[0] not in service.keys[1:], "a refusal brings the old key not back"


async def test_a_service_that_names_seconds_is_left_alone_for_so_long(tmp_path: Path) -> None:
    async def create(service: Service) -> Value:
        raise RemoteError("rate limited, retry in 77 s")

    service = Service(create)
    service.tell(OVERDUE, soon(seconds=-60))
    async with service, kept_by(service, tmp_path) as (_, kept, names):
        await until(lambda: kept.past.failures, LATE)
        assert (service.calls, kept.past.kind, kept.past.pause_s) == (1, Failure.LIMITED, 77.0)
        assert names.answered == 1, "a token that was refused is not sent again"


async def test_without_a_proof_nothing_is_sent_and_a_look_finds_it(tmp_path: Path) -> None:
    by = soon(hours=1)

    async def create(service: Service) -> Value:
        return service.renewed(VALID, by)

    service = Service(create)
    service.tell(OVERDUE, soon(seconds=-60))
    async with service, kept_by(service, tmp_path) as (keeper, kept, names):
        names.has_proof = False
        keeper.look_now()
        await until(lambda: kept.past.kind is Failure.NO_TOKEN or service.calls, LATE)
        if not service.calls:
            assert kept.past.failures == 0
            names.has_proof = True
            keeper.look_now()
        await until(lambda: kept.facts.renew_by == by, LATE)


async def test_a_certificate_that_the_service_has_forgotten_is_replaced(tmp_path: Path) -> None:
    new = S.ca.keychain("operator", status=True, not_after=NOW + 300 * DAY)

    async def create(service: Service) -> Value:
        raise RemoteError("not today")

    service = Service(create)
    service.tell(CertState.UNKNOWN)
    service.set(new, VALID)
    async with service, kept_by(service, tmp_path) as (_, kept, _names):
        await until(lambda: kept.past.failures, LATE)
        assert kept.facts.forgotten
        assert service.calls == 1


async def test_a_revoked_certificate_ends_the_keeping(tmp_path: Path) -> None:
    async def create(service: Service) -> Value:
        raise AssertionError

    service = Service(create)
    service.tell(VALID, soon(hours=1))
    async with service, kept_by(service, tmp_path) as (_, kept, _names):
        await until(lambda: kept.facts.renew_by is not None, LATE)
        service.tell(CertState.REVOKED)
        await until(lambda: kept.stopped, LATE)
        assert "was revoked" in kept.status_line()
        assert service.calls == 0


async def test_a_flood_of_unclear_statuses_has_one_question_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed octets of GOOD may be sent again by anybody, beside another word and ever new dates that nobody has signed."""

    monkeypatch.setattr("appliance.authn.live.keeper.BETWEEN_QUESTIONS_S", 0.05)

    async def create(service: Service) -> Value:
        raise RemoteError("nothing is due")

    service = Service(create)
    service.tell(VALID, soon(hours=9))
    async with service, kept_by(service, tmp_path) as (keeper, kept, _):
        await until(lambda: kept.facts.state is VALID, LATE)
        following = kept.following
        assert following is not None
        asked: list[int] = []

        class Follower:
            status = following.status

            @staticmethod
            def close() -> None:
                following.close()

        async def report(existing: object) -> None:
            asked.append(len(keeper._asking))
            await asyncio.sleep(0.05)

        kept.requester.report = report  # type: ignore[assignment, method-assign]
        kept.following = Follower()  # type: ignore[assignment]
        for second in range(500):
            Follower.status = following.status._replace(
                state=CertState.UNKNOWN, renew_by=soon(hours=8, seconds=second)
            )
            keeper._status(kept)
            if second % 100 == 0:
                await asyncio.sleep(0)
        await until(lambda: not keeper._asking, LATE)
        assert set(asked) == {1}
        assert len(asked) <= 3
        keeper._status(kept)
        await until(lambda: len(asked) >= 2 and not keeper._asking, LATE)


async def test_a_service_that_renews_into_the_past_is_not_asked_without_pause(tmp_path: Path) -> None:
    async def create(service: Service) -> Value:
        return service.renewed(VALID, soon(hours=-5, seconds=service.calls))

    service = Service(create)
    service.tell(VALID, soon(hours=-6))
    async with service, kept_by(service, tmp_path) as (_, kept, names):
        await until(lambda: "check the clocks" in kept.said, LATE)
        await asyncio.sleep(1.0)
        assert (service.calls, names.asked) == (1, 1)
        assert kept.past.kind is Failure.REFUSED
        assert kept.past.pause_s >= 20
