import asyncio
import io
import json
import logging
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.daemon import logging as logging_module
from appliance.daemon.logging import configure, level_spec, redact

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def _clean_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], logging.getLogger("appliance").level
    flags = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    yield
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = flags
    root.handlers[:] = handlers
    logging.getLogger("appliance").setLevel(level)
    logging.raiseExceptions = True


class Terminal(io.StringIO):
    def isatty(self):
        return True


def logged(fmt="json", level="DEBUG", environ=None, stream=None, **call):
    stream = io.StringIO() if stream is None else stream
    configure(level, fmt, stream=stream, environ=environ or {})
    logging.getLogger("appliance.cms.service").log(call.pop("at", logging.WARNING), *call.pop("args"), **call)
    return stream.getvalue()


def test_json_lines_carry_time_level_logger_message_and_fields():
    line = json.loads(logged(args=("cert %d", 7), extra={"serial": 7}))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "WARNING", "logger": "appliance.cms.service", "message": "cert 7", "serial": 7}


def test_auto_is_text_on_a_terminal_and_json_elsewhere():
    assert "\x1b[33mWARNING  cms.service: hello\x1b[0m" in logged("auto", stream=Terminal(), args=("hello",))
    assert "\x1b" not in logged("auto", stream=Terminal(), environ={"NO_COLOR": "1"}, args=("hello",))
    assert json.loads(logged("auto", args=("hello",)))["message"] == "hello"


@pytest.mark.parametrize(("level", "priority"), [(50, 2), (40, 3), (30, 4), (20, 6), (10, 7)])
def test_every_line_to_the_journal_carries_its_priority(level, priority, tmp_path):
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        configure("DEBUG", "text", stream=stream, environ=environ)
        try:
            raise ValueError("x")
        except ValueError:
            logging.getLogger("appliance.x").log(level, "failed", exc_info=True)
        stream.seek(0)
        lines = stream.read().splitlines()
    assert len(lines) > 3
    assert all(line.startswith(f"<{priority}>") for line in lines)


def test_an_inherited_journal_variable_for_another_stream_does_not_count():
    assert not logged("text", environ={"JOURNAL_STREAM": "1:2"}, args=("x",)).startswith("<")


@pytest.mark.parametrize("fmt", ["text", "json"])
@pytest.mark.parametrize(
    "secret", [TOKEN, PEM, TOKEN[: TOKEN.rindex(".")], "password=hunter2", "Bearer abc.def"]
)
def test_secrets_are_taken_out_of_message_arguments_fields_and_exceptions(fmt, secret):
    core = {PEM: "MIIEow", "password=hunter2": "hunter2", "Bearer abc.def": "abc.def"}.get(
        secret, secret[10:30]
    )
    assert core not in logged(fmt, args=(f"got {secret}",))
    assert core not in logged(fmt, args=("got %s", secret))
    assert core not in logged(fmt, args=("got",), extra={"header": secret})
    try:
        raise ValueError(secret)
    except ValueError:
        assert core not in logged(fmt, args=("failed",), exc_info=True)


@pytest.mark.parametrize(
    "text",
    [
        "an eyJ of no length",
        "BEGIN CERTIFICATE",
        "CERT:STATUS:47530d89:1",
        "the token was refused",
        "pkcs11:token=site;object=ca: the token answers",
        "get-token: cannot reach the identity provider",
        "/usr/local/bin/get-token: No such file or directory",
        "/etc/spva/keychain/client.token: mode 0644 lets any user read this secret",
        "cannot read /run/credentials/x/secret: Permission denied",
        "/etc/spva/client.secret: cannot read it",
        "keychain /etc/spva/client.p12; the other one is used",
        'write "FILE.p12;", then go on',
    ],
)
def test_other_text_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "token: HUNTER2x",
        "token: HUNTER2x is wrong",
        "token=HUNTER2x",
        "get-token: HUNTER2x is my answer",
        "get-token=HUNTER of mine",
        "/usr/bin/get-token: HUNTER2x",
        "https://idp.lab/token?token=HUNTER of mine",
        "access_token: HUNTER2x",
        "refresh_token=HUNTER2x&grant=1",
        "x-auth-token: HUNTER2x",
        "{'client_secret': 'HUNTER of mine'}",
        '{"password":"HUNTER of mine", "user": "a"}',
        '"password": HUNTER2x',
        "clientSecret=HUNTER2x",
        "password: HUNTER of mine",
        "user-password: HUNTER of mine",
        "password='HUNTER of mine",
        'epicsEnvSet("EPICS_PVAS_TLS_KEYCHAIN","/etc/my.p12;HUNTER of; mine")',
        "epicsEnvSet EPICS_PVA_TLS_KEYCHAIN '/etc/my keys.P12;HUNTER of mine'",
        "epicsEnvSet EPICS_PVA_TLS_KEYCHAIN,/etc/my.pfx;HUNTERx-yz",
        "EPICS_PVA_TLS_KEYCHAIN=/etc/keychain;HUNTERxyz",
        "cannot open /etc/my.p12;HUNTERxyz, and so on",
    ],
)
def test_a_value_with_the_name_of_a_secret_never_shows(text):
    shown = redact(text)
    assert "HUNTER" not in shown
    assert "***" in shown
    assert len(shown) < len(text) + 3


def test_a_peers_text_cannot_start_a_line_of_its_own():
    text = logged("text", args=("name %s", "x\n2026 INFO all is well\x1b[2J"))
    assert text.count("\n") == 1
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "part",
    [
        "eyJaa-",
        "eyJaa",
        "-----BEGIN ",
        "-----BEGIN A PRIVATE KEY-----",
        "secret ",
        "bearer ",
        "token: a b",
        'token:"',
        "/token: ",
        '".p12',
        "'.p12;",
        '".p12; ',
        ".p12;a",
        "_TLS_KEYCHAIN/",
        "_TLS_KEYCHAIN,;",
    ],
)
def test_redaction_takes_time_in_proportion_to_the_text(part):
    redact(part * (1_000_000 // len(part)))  # what grows with the square takes hours


_PIECES = (
    "eyJ",
    "aGk.",
    "-----BEGIN EC PRIVATE KEY-----",
    "Bearer ",
    "BEARER x",
    "pass",
    "word",
    "PASSWD=",
    "pwd: ",
    "Secret",
    "toKen=a",
    "\u017f",
    "ecret=",
    "\u212a",
    "to",
    "en=b",
    " ",
    "=",
    "abc",
    ".P12;",
    "_TLS_keychain",
    ";",
    '"',
)


@given(st.lists(st.sampled_from(_PIECES), max_size=8).map("".join))
def test_texts_that_are_passed_over_quickly_are_those_without_a_secret(text):
    searched = text
    for pattern, replacement in logging_module._SECRETS:
        searched = pattern.sub(replacement, searched)
    assert redact(text) == logging_module._NAMED.sub(logging_module._without_value, searched)


def test_a_long_message_is_cut_after_redaction():
    line = json.loads(logged(args=(f"{'x' * 32000} {PEM} {'y' * 100_000}",)))
    assert len(line["message"]) < 33000
    assert "MIIEow" not in line["message"]


def test_a_wrong_log_call_still_logs():
    assert "wrong arguments" in logged("text", args=("%d things", "many"))


@pytest.mark.parametrize(("spec", "levels"), [
    ("", {}), ("debug", {"appliance": 10}), ("*=INFO", {"appliance": 20}), ("pvxs.*=DEBUG", {"appliance": 10}),
    ("pvxs.stapling*=DEBUG", {"appliance.certmon": 10}), ("pvxs.tcp.io=ERR,pvxs.svr.*=CRIT", {"appliance.transport": 40, "appliance.server": 50}),
    ("appliance.tls=WARN", {"appliance.tls": 30}), ("tls=INFO", {"appliance.tls": 20}), ("pvxs.unheard.of=INFO", {"appliance": 20}),
])  # fmt: skip
def test_level_specifications_of_pvxs_reach_our_loggers(spec, levels):
    """PVXS log.cpp: $PVXS_LOG."""
    assert level_spec(spec) == (levels, [])


@pytest.mark.parametrize("spec", ["LOUD", "pvxs.*=LOUD", "=INFO", "pvxs.*="])
def test_a_bad_level_specification_is_named(spec):
    levels, faults = level_spec(f"{spec},tls=INFO")
    assert levels == {"appliance.tls": 20}
    assert repr(spec) in faults[0]


def test_configuring_again_replaces_what_was_there():
    first, second = io.StringIO(), io.StringIO()
    configure("tls=DEBUG", "json", stream=first, environ={})
    assert configure("INFO", "json", stream=second, environ={"PVXS_LOG": "pvxs.tcp=DEBUG,bad=bad"}) != []
    logging.getLogger("appliance.tls").debug("x")
    logging.getLogger("appliance.transport").debug("y")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["message"] == "y"


def test_the_default_stream_is_stderr(capsys):
    configure("INFO", "text", environ={})
    logging.getLogger("appliance.x").info("hello")
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err
    assert sys.stderr is not None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no CERT:STATUS:3070e289:00000000000000008132", " (3070e289:8132)"),
        ("PRE:STATUS:3070e289:08132000000000000000: lost", " (3070e289:8132000000000000000): lost"),
        ("CERT:STATUS:3070e289:00000000000000008132 of 3070e289:8132", ""),
        ("CERT:STATUS:3070e289:13812345678901234567", ""),
    ],
)
def test_a_status_pv_is_logged_with_the_identifier_as_everything_else_spells_it(text, shown):
    name = text.partition(":STATUS:")[2][:29]
    said = json.loads(logged(args=("%s", text)))["message"]
    assert name in said
    assert said == text.replace(name, name + shown.partition(")")[0] + ")" if shown else name)


class Writes(io.StringIO):
    """Keeps each write by itself."""

    def __init__(self):
        super().__init__()
        self.all = []

    def write(self, text):
        self.all.append([json.loads(line)["message"] for line in text.splitlines()])
        return len(text)


async def test_lines_of_one_turn_of_the_event_loop_are_written_together_at_its_end():
    stream = Writes()
    configure("INFO", "json", stream=stream, environ={}, gathers=True)
    log = logging.getLogger("appliance.cms.service")
    for number in range(3):
        log.info("line %d", number)
    assert stream.all == []
    await asyncio.sleep(0)
    log.info("next")
    await asyncio.sleep(0)
    assert stream.all == [["line 0", "line 1", "line 2"], ["next"]]


async def test_a_warning_is_written_at_once_behind_what_came_before_it():
    stream = Writes()
    configure("INFO", "json", stream=stream, environ={}, gathers=True)
    log = logging.getLogger("appliance.cms.service")
    log.info("before")
    log.warning("now")
    log.info("after")
    assert stream.all == [["before", "now"]]
    await asyncio.sleep(0)
    assert stream.all == [["before", "now"], ["after"]]


async def test_a_line_of_another_thread_is_written_at_once():
    stream = Writes()
    configure("INFO", "json", stream=stream, environ={}, gathers=True)
    await asyncio.to_thread(logging.getLogger("appliance.cms.store").info, "from a thread")
    assert stream.all == [["from a thread"]]


def test_without_an_event_loop_a_line_is_written_at_once():
    stream = Writes()
    configure("INFO", "json", stream=stream, environ={}, gathers=True)
    logging.getLogger("appliance.cms.service").info("alone")
    assert stream.all == [["alone"]]


async def test_what_was_gathered_is_written_when_logging_is_configured_again():
    stream = Writes()
    configure("INFO", "json", stream=stream, environ={}, gathers=True)
    logging.getLogger("appliance.cms.service").info("waits")
    configure("INFO", "json", stream=io.StringIO(), environ={})
    assert stream.all == [["waits"]]
