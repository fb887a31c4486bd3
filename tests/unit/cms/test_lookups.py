"""What is asked for each request is found by an index, however many certificates the authority has."""

import pytest
import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms import key_uses, reading, schema, transaction
from appliance.cms.statements import Several
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord

QUESTIONS = {
    "a subject": (transaction.OF_SUBJECTS, [["s7"]], "certs_subject"),
    "several subjects": (transaction.OF_SUBJECTS, [["s7", "s8"]], "certs_subject"),
    "a key": (key_uses.OF_KEYS, [["k7"], ["n7"]], "certs_key (key_id=? AND skid=?)"),
    "several keys": (
        key_uses.OF_KEYS,
        [["k7", "k8", "k9"], ["n7", "n8", "n9"]],
        "certs_key (key_id=? AND skid=?)",
    ),
    "a serial number": (transaction._OF_SERIAL, {"number": 7}, "INTEGER PRIMARY KEY"),
    "several serial numbers": (reading._SEVERAL, {"numbers": [7, 8]}, "INTEGER PRIMARY KEY"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_of_each_request_uses_the_index_of_what_it_asks_for(tmp_path, question):
    statement, values, index = QUESTIONS[question]
    seen = []
    store = Store(str(tmp_path / "certs.db"), "0123abcd")
    store.open()

    def look(within):
        connection = within.connection

        def note(_connection, _cursor, text, parameters, *_more):
            if not text.startswith("EXPLAIN"):
                seen.append((text, parameters))

        if isinstance(statement, Several):
            text, parameters = statement.form(connection, *values)
        else:
            sa.event.listen(connection.engine, "before_cursor_execute", note)
            connection.execute(statement, values).all()
            text, parameters = seen[-1]
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", tuple(parameters)).all()
        return " ".join(row[3] for row in plan)

    try:
        plan = store.run(look)
    finally:
        store.close()
    assert index in plan
    assert "SCAN certs" not in plan
    assert "issuer" not in plan


@pytest.mark.parametrize("count", [1, 2, 3, 31, 33, 100])
def test_new_rows_are_written_whole_however_many_there_are(tmp_path, count):
    store = Store(str(tmp_path / "certs.db"), "0123abcd")
    store.open()
    more = {"cn": "x", "o": "", "ou": "", "c": "", "created": 5, "barred": True}

    def add(within):
        for number in range(1, count + 1):
            record = CertRecord(number, f"s{number}", "client", "std", 1, 2, 0, CertState.VALID, 5, True, 0)
            within.add(record, more)
            within.audit(5, "create", number, {"why": f"number {number}"})

    try:
        store.run(add)
        certs, audit = store.run(
            lambda within: (
                within.connection.execute(sa.select(schema.certs).order_by(schema.certs.c.serial)).all(),
                within.connection.execute(sa.select(schema.audit).order_by(schema.audit.c.seq)).all(),
            )
        )
    finally:
        store.close()
    assert [
        (row.serial, row.subject, row.state, row.approved, row.barred, row.schedule) for row in certs
    ] == [(n, f"s{n}", "VALID", True, True, "") for n in range(1, count + 1)]
    assert [(row.seq, row.serial) for row in audit] == [(n, str(n)) for n in range(1, count + 1)]
