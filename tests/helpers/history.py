"""What clients asked a certificate service for and what they were told, recorded; and whether all of it can be true.

The idea is Jepsen's: clients note each call before it goes out and again when its answer comes, while nodes and databases are
killed. Afterwards `check` compares the notes with the audit and with what each node says. It is a pure function, so forged
histories show that it finds each kind of fault (tests/unit/cms/test_history.py).

A call that failed for certain did nothing. A call whose answer is unknown may have done something or not, so its client asks
again until it knows.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from appliance.daemon.audit import GENESIS, verify

INVOKED: Final = "invoked"
OK: Final = "ok"
REFUSED: Final = "refused"
"""It failed for certain: nothing was done."""
UNKNOWN: Final = "unknown"
"""No answer came, so it may have been done."""
PROPAGATION_S: Final = 3.0
"""For so long after a revocation was answered a status may still be signed as good, at a node that has not heard of it."""
_ENDS: Final = ("revoke", "deny", "lapse")
_GOOD: Final = ("VALID", "PENDING_RENEWAL")


class Event(NamedTuple):
    """One note of one client. What does not apply is empty."""

    call: int
    phase: str
    at: float
    """POSIX seconds."""
    client: str
    op: str
    """``create``, ``revoke`` or ``status``."""
    node: str = ""
    subject: str = ""
    """The common name."""
    key: str = ""
    jti: str = ""
    serial: int = 0
    """The answer's, or the one that is asked about."""
    is_new: bool = True
    """Of an answered ``create``: whether it brought a certificate. A renewal brings none."""
    state: str = ""
    signed_at: float = 0.0
    """Of an answered ``status``: its ``this_update``."""
    why: str = ""


class AuditRecord(NamedTuple):
    """A record of the audit, and the hash that is stored with it."""

    record: Mapping[str, Any]
    hash: str


class Recorder:
    """A history that grows. Each note is on disk before the next one is made, so a test that was killed leaves it."""

    def __init__(self, path: Path) -> None:
        self.events: list[Event] = []
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._calls = 0

    def call(self) -> int:
        """Return the number of a new call."""
        with self._lock:
            self._calls += 1
            return self._calls

    def note(self, event: Event) -> None:
        """Add a note."""
        with self._lock:
            self.events.append(event)
            self._file.write(json.dumps(event._asdict()) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> list[Event]:
    """Return a history that a `Recorder` has written."""
    with path.open(encoding="utf-8") as file:
        return [Event(**json.loads(line)) for line in file]


def check(
    history: Sequence[Event],
    audit: Sequence[AuditRecord],
    states: Mapping[str, Mapping[int, str]],
    *,
    after: tuple[int, str] = (0, GENESIS),
) -> list[str]:
    """Return what cannot be true; nothing if all of it can.

    Args:
        history: The notes of all clients, in the order in which they were made.
        audit: All records, in the order of their numbers.
        states: For each node what it says in the end: serial numbers and states.
        after: Number and hash of the record before the first one, if the audit was pruned.
    """
    return [
        *_malformed(history),
        *_audit_faults(audit, after),
        *_two_live(audit),
        *_answers(history, audit, states),
        *_requests(history, audit),
        *_tokens(history),
        *_statuses(history),
    ]


def _malformed(history: Sequence[Event]) -> Iterator[str]:
    """Yield why the notes themselves are wrong: then they prove nothing."""
    begun: dict[int, Event] = {}
    ended: set[int] = set()
    for event in history:
        if event.phase == INVOKED:
            if event.call in begun:
                yield f"history: the call {event.call} begins twice"
            begun[event.call] = event
        elif event.call not in begun:
            yield f"history: the call {event.call} ends before it begins"
        elif event.call in ended:
            yield f"history: the call {event.call} ends twice"
        else:
            ended.add(event.call)
            if event.at < begun[event.call].at:
                yield f"history: the call {event.call} ends earlier than it begins"
    for call in begun.keys() - ended:
        yield f"history: the call {call} has no end; note it as unknown"


def _audit_faults(audit: Sequence[AuditRecord], after: tuple[int, str]) -> Iterator[str]:
    finding = verify(((entry.record, entry.hash) for entry in audit), after=after)
    if finding.fault:
        yield f"audit: {finding.fault}"
    for number, entry in enumerate(audit, after[0] + 1):
        if entry.record["seq"] != number:
            yield f"audit: the record {number} is missing, {entry.record['seq']} comes in its place"
            return


def _two_live(audit: Sequence[AuditRecord]) -> Iterator[str]:
    """Yield subjects that had two live certificates at once. Only a token (``identity``) may bring a second one."""
    live: dict[str, set[str]] = defaultdict(set)
    subject_of: dict[str, str] = {}
    for entry in audit:
        record = entry.record
        action, serial = record["action"], record["serial"]
        if (
            action == "create" and record.get("usage") != "cms"
        ):  # each node has a certificate of its own, of one name
            subject = record["subject"]
            if serial in subject_of:
                yield f"audit: the certificate {serial} was created twice"
            if live[subject] and not record.get("identity"):
                yield (
                    f"two live: {subject} got {serial} (record {record['seq']}) while {', '.join(sorted(live[subject]))} "
                    "was live"
                )
            subject_of[serial] = subject
            live[subject].add(serial)
        elif action in _ENDS or (action == "clock" and record.get("state") == "EXPIRED"):
            if serial in subject_of and serial not in live[subject_of[serial]]:
                yield f"audit: the certificate {serial} ended twice (record {record['seq']})"
            live[subject_of.get(serial, "")].discard(serial)


def _answers(
    history: Sequence[Event], audit: Sequence[AuditRecord], states: Mapping[str, Mapping[int, str]]
) -> Iterator[str]:
    """Yield answers that are not true: a certificate that nobody knows, a revocation that was lost, nodes that differ."""
    created = {entry.record["serial"] for entry in audit if entry.record["action"] == "create"}
    ended = {entry.record["serial"] for entry in audit if entry.record["action"] in _ENDS}
    for event in history:
        if event.phase != OK or event.op not in ("create", "revoke"):
            continue
        if event.op == "create" and str(event.serial) not in created:
            yield f"lost: the certificate {event.serial} of {event.subject} was answered, and the audit has no record of it"
        if event.op == "revoke" and str(event.serial) not in ended:
            yield f"lost: the revocation of {event.serial} was answered, and the audit has no record of it"
        for node, known in states.items():
            state = known.get(event.serial, "")
            if event.op == "revoke" and state != "REVOKED":
                yield f"lost: {event.serial} was revoked, and {node} says {state or 'nothing'}"
            elif event.op == "create" and state in ("", "UNKNOWN"):
                yield f"lost: {event.serial} was issued to {event.subject}, and {node} does not know it"
    for serial in sorted({serial for known in states.values() for serial in known}):
        said = {node: known.get(serial, "") or "nothing" for node, known in states.items()}
        if len(set(said.values())) > 1:
            yield f"nodes differ: {serial} is {', '.join(f'{state} at {node}' for node, state in said.items())}"


def _requests(history: Sequence[Event], audit: Sequence[AuditRecord]) -> Iterator[str]:
    """Yield requesters that got no answer in the end, and certificates that no request explains."""
    ends: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in history:
        if event.phase != INVOKED and event.op in ("create", "revoke"):
            ends[event.op, event.subject or str(event.serial)].append(event)
    created = Counter(_common_name(entry.record) for entry in audit if entry.record["action"] == "create")
    for (op, what), told in ends.items():
        if told[-1].phase == UNKNOWN:
            yield f"unanswered: what became of {op} {what} was never learnt"
        if op == "create":
            possible = sum(event.phase == UNKNOWN or (event.phase == OK and event.is_new) for event in told)
            if created[what] > possible:
                yield f"too many: {what} has {created[what]} certificates, and at most {possible} requests could make one"


def _common_name(record: Mapping[str, Any]) -> str:
    first = str(record["subject"]).split(",")[0].strip()
    return first.removeprefix("CN=")


def _tokens(history: Iterable[Event]) -> Iterator[str]:
    """Yield tokens that more than one key got a certificate with, or one key more than one."""
    got: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for event in history:
        if event.op == "create" and event.phase == OK and event.jti and event.is_new:
            got[event.jti].add((event.key, event.serial))
    for jti, uses in got.items():
        if len({key for key, _ in uses}) > 1:
            yield f"token used twice: {jti} gave certificates to {len({key for key, _ in uses})} keys"
        elif len(uses) > 1:
            yield f"token used twice: {jti} gave one key {len(uses)} certificates"


def _statuses(history: Iterable[Event]) -> Iterator[str]:
    """Yield statuses that were signed as good too late after a revocation, or that came back to life."""
    revoked: dict[int, float] = {}
    for event in history:
        if event.op == "revoke" and event.phase == OK:
            revoked[event.serial] = min(event.at, revoked.get(event.serial, event.at))
    for event in history:
        if event.op != "status" or event.phase != OK or event.serial not in revoked:
            continue
        late = event.signed_at - revoked[event.serial]
        if event.state in _GOOD and late > PROPAGATION_S:
            yield f"good after revocation: {event.node} signed {event.serial} as {event.state} {late:.1f} s after it was revoked"
