"""What a node that died left behind is looked after by the first of those that live."""

import pytest
import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms.dialect import Login
from appliance.cms.nodes import Nodes, forget_silent
from appliance.cms.schema import audit, nodes
from appliance.cms.store import Store
from appliance.cms.transaction import IN_DOUBT, CertRecord

MORE = {"cn": "a", "o": "", "ou": "", "c": "", "identity": "", "skid": "", "created": 0}


@pytest.fixture
def living(postgres):
    """The node a, which lives."""
    name = postgres.new()
    store = Store(postgres.url(name), "01234567", login=Login(node="a"), wait_s=30.0)
    store.open()
    made = Nodes(store)
    made.enter()
    yield made
    made.stop()
    store.close()
    postgres.drop(name)


def record_node(living, name, *, silent_s):
    """A node whose process is gone, so that nobody has its lock, and which has not been heard of for so long."""

    def job(transaction):
        number = 1 + transaction.connection.execute(sa.select(sa.func.max(nodes.c.number))).scalar_one()
        now = transaction.connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())::bigint")
        row = {
            "node": name,
            "number": number,
            "seen_at": now.scalar_one() - silent_s,
            "started_at": 0,
            "seq": 0,
        }
        row |= dict.fromkeys(("instance", "node_id", "release", "schema", "address", "last_commit"), "")
        transaction.connection.execute(sa.insert(nodes).values(row))
        record = CertRecord(number, name, "client", "std", 0, 10, 0, CertState.VALID, 0, True, 0)
        transaction.add(record._replace(node=name), MORE)
        return number

    return living.store.run(job)


def delivered(living, serial):
    return living.store.run(lambda transaction: transaction.get(serial)).delivered


def test_after_a_minute_its_undelivered_certificates_are_in_doubt_and_it_is_a_node_no_more(living):
    long, lately = record_node(living, "b", silent_s=100), record_node(living, "c", silent_s=20)
    mine = record_node(living, "d", silent_s=20)
    assert living.store.run(lambda transaction: forget_silent(transaction, 5)) == ["b"]
    assert [delivered(living, serial) for serial in (long, lately, mine)] == [IN_DOUBT, 0, 0]
    left = living.store.run(lambda t: t.connection.execute(sa.select(nodes.c.node)).scalars().all())
    assert sorted(left) == ["a", "c", "d"]
    query = sa.select(audit.c.record).where(audit.c.action == "doubt")
    (told,) = living.store.run(lambda t: t.connection.execute(query).scalars().all())
    assert '"certificates":"1"' in told
    assert '"node":"b"' in told
    assert living.store.run(lambda transaction: forget_silent(transaction, 5)) == []


def test_a_node_that_is_dead_is_known_to_be_dead(living):
    record_node(living, "b", silent_s=1)
    living._beat(living._connection)
    assert living.is_alive("a")
    assert not living.is_alive("b"), "its lock is not held"
    assert not living.is_alive("nobody")
    assert not living.silent
    record_node(living, "c", silent_s=100)
    living._beat(living._connection)
    assert living.silent
    assert living.rank == 0
