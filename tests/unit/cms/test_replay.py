"""Used tokens in the database: once each, except for the holder of the same key who lost the answer; one file for each node."""

import pytest
import sqlalchemy as sa

from appliance.cms.replay import StoredReplay, TokenJournal
from appliance.cms.store import Store

NOW = 1_000_000.0
ISSUER = "https://idp.example"
TOKEN = "ab" * 32
LATER = NOW + 3600


class Nodes:
    """A database, and the files of used tokens of its nodes."""

    def __init__(self, directory, db):
        self.directory = directory
        self.db = db
        self.open()

    def open(self):
        self.store = Store(self.db, "01234567")
        self.store.open()

    def path(self, name):
        return self.directory / f"{name}.tokens"

    def start(self, name, now=NOW):
        """A node begins; what it has of used tokens."""
        self.store.node = name
        journal = TokenJournal(str(self.path(name)))
        found = StoredReplay(self.store, journal)
        found.load(now)
        return found

    async def use(self, replay, token=TOKEN, now=NOW, **whose):
        return await replay.use(ISSUER, token, LATER, now, now - 10, **whose)


@pytest.fixture
def nodes(tmp_path, engine):
    made = Nodes(tmp_path, engine.db(tmp_path))
    yield made
    made.store.close()


MINE = {"key_id": "key", "usage": "client"}


@pytest.mark.parametrize(
    ("first", "again", "at", "accepted"),
    [
        (MINE, MINE, 0, True),
        (MINE, MINE, 60, True),
        (MINE, MINE, -4, True),
        (MINE, MINE, 61, False),
        (MINE, {"key_id": "other", "usage": "client"}, 1, False),
        (MINE, {"key_id": "key", "usage": "server"}, 1, False),
        (MINE, {"key_id": "", "usage": "client"}, 1, False),
        ({"key_id": "", "usage": "client"}, {"key_id": "", "usage": "client"}, 1, False),
        ({"key_id": "", "usage": "client"}, MINE, 1, False),
    ],
    ids=[
        "at once", "within a minute", "by a clock that is behind", "after a minute", "another key", "another usage",
        "no proof of the key", "never a proof", "no proof the first time",
    ],
)  # fmt: skip
async def test_a_token_may_be_repeated_by_the_key_that_used_it(nodes, first, again, at, accepted):
    one, two = nodes.start("a"), nodes.start("b")
    nodes.store.start()
    nodes.store.node = "a"
    assert await nodes.use(one, **first)
    nodes.store.node = "b"
    assert not await nodes.use(two, now=NOW + at, **again)
    assert await two.repeats(ISSUER, TOKEN, NOW + at, **again) == (NOW if accepted else 0)
    assert not await two.repeats(ISSUER, TOKEN, NOW + 3000, **again), (
        "a repetition does not begin another minute"
    )
    assert not await two.repeats(ISSUER, "cd" * 32, NOW, **again), "it was never used"


async def test_a_token_that_was_used_at_one_node_is_used_up_at_all(nodes):
    one, two = nodes.start("a"), nodes.start("b")
    nodes.store.start()
    assert await nodes.use(two)
    assert not await nodes.use(one)


async def use_at(nodes, name, token):
    replay = nodes.start(name)
    nodes.store.start()
    assert await nodes.use(replay, token)
    nodes.store.close()
    nodes.open()


async def test_what_other_nodes_have_used_is_not_missing_in_the_own_file(nodes):
    await use_at(nodes, "a", TOKEN)
    await use_at(nodes, "b", "cd" * 32)
    replay = nodes.start("a", NOW + 5)
    nodes.store.start()
    assert await nodes.use(replay, "ef" * 32, NOW + 6), "a token that was issued before this start counts"
    assert TOKEN in nodes.path("a").read_text()
    assert "cd" * 32 not in nodes.path("a").read_text()


@pytest.mark.parametrize("name", ["a", ""], ids=["one of several nodes", "the only service"])
async def test_what_the_own_file_lacks_makes_tokens_void(nodes, name, caplog):
    await use_at(nodes, name, TOKEN)
    nodes.path(name).write_text("pvacms tokens 1\n")
    replay = nodes.start(name, NOW + 5)
    assert "is older than the database" in caplog.text
    nodes.store.start()
    assert not await nodes.use(replay, "ef" * 32, NOW + 6)


async def test_a_new_node_voids_no_tokens(nodes):
    await use_at(nodes, "a", TOKEN)
    replay = nodes.start("b", NOW + 5)
    nodes.store.start()
    assert await nodes.use(replay, "ef" * 32, NOW + 6)
    assert not await nodes.use(replay, TOKEN, NOW + 6)


async def test_a_use_that_a_restored_database_lacks_comes_back_from_the_file_and_nobody_repeats_it(nodes):
    nodes.path("a").write_text(f"pvacms tokens 1\n{int(LATER) + 1} {TOKEN} {ISSUER}\n")
    replay = nodes.start("a")
    nodes.store.start()
    assert not await nodes.use(replay, **MINE)
    assert not await replay.repeats(ISSUER, TOKEN, NOW, **MINE)


async def test_many_uses_come_back_in_one_statement_and_those_that_are_there_stay(nodes):
    one = nodes.start("a")
    nodes.store.start()
    nodes.store.node = "a"
    many = [f"{number:064x}" for number in range(40)]
    for token in many:
        assert await nodes.use(one, token, **MINE)
    forget = f"DELETE FROM replay WHERE token > '{2:064x}'"
    await nodes.store.submit(lambda transaction: transaction.connection.exec_driver_sql(forget))
    statements = []

    def count(_connection, _cursor, text, _values, _context, is_many):
        if "INTO replay" in text:
            statements.append(is_many)

    def make_good(transaction):
        sa.event.listen(transaction.connection.engine, "before_cursor_execute", count)
        one.make_good(transaction, NOW - 1000)

    await nodes.store.submit(make_good)
    assert statements == [nodes.store.database.where.endswith(".db")], "a server gets arrays"
    for token in many:
        assert not await nodes.use(one, token, **MINE)
    assert await one.repeats(ISSUER, many[0], NOW, **MINE)
    assert not await one.repeats(ISSUER, many[39], NOW, **MINE)


async def test_a_use_before_tokens_became_void_is_not_repeated(nodes):
    replay = nodes.start("a")
    nodes.store.start()
    assert await nodes.use(replay, **MINE)
    nodes.store.close()
    nodes.open()
    nodes.path("a").unlink()
    replay = nodes.start("a", NOW + 5)
    nodes.store.start()
    assert not await replay.repeats(ISSUER, TOKEN, NOW + 6, **MINE)


async def test_what_a_database_has_lost_while_the_service_ran_is_recorded_again_and_older_tokens_are_void(
    nodes,
):
    replay = nodes.start("a")
    nodes.store.start()
    assert await nodes.use(replay, **MINE)

    def lose(transaction):
        transaction.connection.exec_driver_sql("DELETE FROM replay")

    await nodes.store.submit(lose)
    await nodes.store.submit(lambda transaction: replay.make_good(transaction, NOW + 5))
    assert not await nodes.use(replay, **MINE)
    assert not await replay.repeats(ISSUER, TOKEN, NOW + 6, **MINE)
    assert not await nodes.use(replay, "ef" * 32, NOW + 6), "nobody knows what other nodes used"
    assert await replay.use(ISSUER, "12" * 32, LATER, NOW + 10, NOW + 6), "it is younger"
