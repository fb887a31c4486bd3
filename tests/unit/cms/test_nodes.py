"""Nodes that share a database know which of them live."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest

from appliance.cms import nodes as module
from appliance.cms import schema
from appliance.cms.dialect import Login
from appliance.cms.nodes import Member, Nodes, members
from appliance.cms.store import Store
from appliance.errors import ConfigurationError
from appliance.version import __version__
from tests.helpers.postgres import raw


class Site:
    def __init__(self, postgres, monkeypatch):
        self.server = postgres
        self.name = postgres.new()
        self.where = postgres.url(self.name)
        self.beats = threading.Condition()
        self.made: list[Nodes] = []
        real = Nodes._beat

        def beat(node, connection):
            real(node, connection)
            with self.beats:
                self.beats.notify_all()

        monkeypatch.setattr(Nodes, "_beat", beat)
        monkeypatch.setattr(module, "BEAT_S", 0.05)

    def node(self, name: str) -> Nodes:
        store = Store(self.where, "01234567", login=Login(node=name), wait_s=30.0)
        store.open()
        made = Nodes(store)
        try:
            made.enter()
        except BaseException:
            store.close()
            raise
        store.let_others_start()
        made.start()
        self.made.append(made)
        return made

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a beat after which something holds."""
        with self.beats:
            assert self.beats.wait_for(holds, 60)

    def end(self, node: Nodes) -> None:
        node.stop()
        node.store.close()

    def close(self) -> None:
        for node in self.made:
            self.end(node)
        self.server.drop(self.name)


@pytest.fixture
def site(postgres, monkeypatch):
    made = Site(postgres, monkeypatch)
    yield made
    made.close()


def test_nodes_see_each_other_and_one_that_is_stopped_is_gone(site):
    a, b = site.node("a"), site.node("b")
    b.node_id, b.address, b.seq = "89abcdef", "hostb:5076", 7
    site.until(lambda: a.alive == b.alive == ["a", "b"] and a.members[1].node_id == "89abcdef")
    found = a.members[1]
    assert (found.address, found.seq, found.schema) == ("hostb:5076", 7, "0004")
    assert ".".join(map(str, found.version)) == found.release == __version__
    assert found.started_at <= found.seen_at
    assert (a.rank, b.rank) == (0, 1)
    assert {member.number for member in a.members} == {1, 2}
    site.end(a)
    site.until(lambda: b.alive == ["b"] and len(b.members) == 1)
    assert b.rank == 0


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("9.0.1", (9, 0, 1)),
        ("9.0.1rc2", (9, 0, 1)),
        ("9.1rc2", (9, 1, 0)),
        ("9.x.1", (9, 0, 1)),
        ("9", (9, 0, 0)),
        ("", (0, 0, 0)),
        ("1.2.3.4", (1, 2, 3)),
        ("99999999999.1", (0, 1, 0)),
    ],
)
def test_the_numbers_of_a_release_stay_at_their_places(release, version):
    assert Member._make((*[None] * 3, release, *[None] * (len(Member._fields) - 4))).version == version


def test_a_node_that_lost_its_session_is_dead_at_once_and_comes_back_by_itself(site, monkeypatch):
    a, b = site.node("a"), site.node("b")
    held = threading.Event()
    real = Nodes._lock
    monkeypatch.setattr(Nodes, "_lock", lambda node, c: held.is_set() and real(node, c))
    # What the server does when the process is gone.
    site.server.sql(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN nodes n ON n.number = l.objid "
        "WHERE l.locktype = 'advisory' AND l.classid = 37429 AND n.node = 'a'",
        site.name,
    )
    site.until(lambda: b.alive == ["b"])
    assert len(b.members) == 2, "it is known, and does not live"
    held.set()
    site.until(lambda: b.alive == ["a", "b"] and a.alive == ["a", "b"])
    assert a.members[0].number == b.members[0].number


def test_a_node_that_is_silent_is_dead_though_it_holds_its_lock(site):
    a = site.node("a")
    with contextlib.closing(site.server.connect(site.name)) as db:
        db.execute(
            "INSERT INTO nodes VALUES ('b', 9, '', '', '', '', '', 0, "
            "cast(extract(epoch from clock_timestamp()) AS bigint) - 60, 0, '')"
        )
        db.execute("SELECT pg_advisory_lock_shared(37429, 9)")
        site.until(lambda: len(a.members) == 2 and a.members[1].silent_s >= 60)
        assert a.alive == ["a"]
        db.execute(
            "UPDATE nodes SET seen_at = cast(extract(epoch from clock_timestamp()) AS bigint) WHERE node = 'b'"
        )
        site.until(lambda: a.alive == ["a", "b"])


def test_a_second_process_with_the_name_of_a_living_node_is_refused(site, monkeypatch):
    monkeypatch.setattr(module, "_ENTER_S", 0.1)
    a = site.node("a")
    with pytest.raises(ConfigurationError, match=r"another pvacms is node 'a' .* with the setting node"):
        site.node("a")
    with raw(site.where) as db:
        assert db.execute("SELECT instance FROM nodes").fetchall() == [(a.instance,)]
    site.end(a)
    again = site.node("a")
    site.until(lambda: again.alive == ["a"])


def test_a_node_whose_row_others_have_removed_records_itself_with_its_next_commit(site):
    a = site.node("a")
    with raw(site.where) as db:
        db.execute("DELETE FROM nodes")
    site.until(lambda: not a.members)
    a.store.run(lambda transaction: transaction.audit(1, "test", None, {}))
    site.until(lambda: a.alive == ["a"] and len(a.members) == 1 and a.members[0].is_alive)
    with raw(site.where) as db:
        (token,) = db.execute("SELECT last_commit FROM nodes").fetchone()
    assert token, "and with it what tells whether its commit came about"


def test_the_nodes_are_known_inside_a_job_too(site):
    a = site.node("a")
    found = a.store.run(lambda transaction: members(transaction.connection))
    assert [(member.node, member.is_alive) for member in found] == [("a", True)]


def test_the_offset_of_the_clocks_is_measured(site):
    a = site.node("a")
    assert abs(a.clock_offset_s) < 30, "both are this machine's clock"


CONTRACTS = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "0005", "0004", None, None


def upgrade():
    op.execute("UPDATE meta SET value = '0005' WHERE key = 'schema_oldest'")
    op.drop_column("certs", "came_from")
"""


def test_what_nodes_that_work_still_need_is_not_dropped(site, monkeypatch, tmp_path):
    """A release that drops something says with ``schema_oldest`` which programs can go on."""
    node = site.node("a")
    (tmp_path / "0005_contract.py").write_text(CONTRACTS)
    monkeypatch.setattr(schema, "HEAD", "0005")
    monkeypatch.setattr(schema, "VERSIONS", [str(tmp_path)])
    later = Store(site.where, "01234567", login=Login(node="b"), wait_s=30.0)
    with pytest.raises(ConfigurationError, match=r"nodes of an earlier release work with it.*'a' \(pvacms "):
        later.open()
    with raw(site.where) as rows:
        assert rows.execute("SELECT version_num FROM alembic_version").fetchone() == ("0004",)
        rows.execute("SELECT came_from FROM certs")
    site.end(node)
    later.open()
    later.close()
    with raw(site.where) as rows:
        assert rows.execute("SELECT version_num FROM alembic_version").fetchone() == ("0005",)
