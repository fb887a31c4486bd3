"""Command lines of pvxcert and the authenticators: what contradicts itself is refused before anything is done."""

import pytest

from appliance.certs.keychain import dump_keychain
from appliance.certs.status import CertState
from appliance.cli import authnjwt, authnstd, pvxcert
from tests.helpers.pki import DAY, NOW, site

ID = "47530d89:3826361579604613180"


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """An account that has nothing, on a host that reaches nobody."""
    import os

    for name in list(os.environ):
        if name.startswith(("EPICS_", "PVXS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("EPICS_PVA_AUTO_ADDR_LIST", "NO")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["-A"], "needs the certificate's identifier"),
        (["-D"], "needs the certificate's identifier"),
        (["-A", "-f", "x"], "needs the certificate's identifier"),
        (["-f", "x", ID], "not by both"),
        (["-p", ID], "-p asks for the password"),
        (["--own", ID], "--own belongs to --revoke"),
        (["-X", "-R", ID], "-X shows a certificate"),
        (["--pending"], "belong to: pvxcert list"),
        (["--limit", "3", ID], "belong to: pvxcert list"),
        (["-R", "list"], "not list"),
        (["list", "-f", "x"], "no meaning with list"),
        (["47530d89"], "is not a certificate identifier"),
        (["-A", "zzz:1"], "is not a certificate identifier"),
        ([f"47530d89:{1 << 64}"], "is not a certificate identifier"),
        ([], "request a certificate with authnjwt or authnstd"),
        (["-R"], "request a certificate with authnjwt or authnstd"),
        (["-f", "/does/not/exist"], "No such file"),
    ],
)
def test_pvxcert_refuses_what_makes_no_sense(arguments, why, capsys):
    assert pvxcert.main(arguments) == 1
    shown = capsys.readouterr()
    assert why in shown.err
    assert "==>" not in shown.out


@pytest.mark.parametrize("arguments", [["-A", "-D", ID], ["--nonsense"], ["-w", "x", ID], ["-w", "nan", ID]])
def test_pvxcert_ends_with_1_for_a_bad_command_line(arguments):
    with pytest.raises(SystemExit) as end:
        pvxcert.main(arguments)
    assert end.value.code == 1


def test_every_state_has_an_exit_status_and_only_valid_is_success():
    assert set(pvxcert.EXITS) == {state.value for state in CertState}
    assert [name for name, status in pvxcert.EXITS.items() if status == 0] == ["VALID"]
    assert pvxcert.EXITS["PENDING_APPROVAL"] == 3
    assert 2 not in pvxcert.EXITS.values(), "2 means interrupted"


@pytest.mark.parametrize("tool", [authnstd, authnjwt])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--force", "--if-due"],
        ["--if-due", "--check-due"],
        ["-a", "--if-due"],
        ["--trust-anchor", "--check-due"],
    ],
)
def test_the_authenticators_refuse_what_contradicts_itself(tool, arguments, capsys):
    assert tool.main(arguments) == (255 if "--check-due" in arguments else 1)
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("tool", [authnstd, authnjwt])
def test_a_usage_that_does_not_exist_is_a_bad_command_line(tool):
    with pytest.raises(SystemExit) as end:
        tool.main(["-u", "gateway"])
    assert end.value.code == 1


@pytest.mark.parametrize(
    "arguments",
    [["-n", "x" * 65], ["-n", "a\nb"], ["-c", "USA"], ["-t", "1.5h"], ["-i", "xyz"], ["--ou", " x "]],
)
def test_a_name_that_no_certificate_can_hold_is_refused_before_the_network(arguments, capsys):
    assert authnstd.main(["-w", "0", *arguments]) == 1
    assert "timeout" not in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["pvxcert", "authnstd", "authnjwt"])
def test_help_tells_the_exit_statuses(tool, capsys):
    module = {"pvxcert": pvxcert, "authnstd": authnstd, "authnjwt": authnjwt}[tool]
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "exit status:" in text
    assert "  3  " in text


def never_zero(capsys, monkeypatch, arguments, **environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    status = authnstd.main(["--check-due", *arguments])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["--no-such-option"], {}),
        (["-u", "cook"], {}),
        (["--force"], {}),
        (["-a"], {}),
        ([], {"EPICS_PVA_AUTH_ISSUER": "zz"}),
        ([], {"EPICS_PVA_AUTH_CERT_VALIDITY_MINS": "soon"}),
        ([], {"EPICS_PVA_TLS_KEYCHAIN": "/x.p12;secret"}),
        ([], {"EPICS_PVA_TLS_KEYCHAIN": "/"}),
    ],
    ids=["option", "choice", "force", "anchor", "issuer", "duration", "password", "directory"],
)
def test_check_due_that_cannot_tell_ends_with_255(capsys, monkeypatch, tmp_path, arguments, environ):
    """systemd takes 1 to 254 of ExecCondition= for "skip": a renewal that cannot run must be a failed unit."""
    status, said = never_zero(capsys, monkeypatch, arguments, XDG_CONFIG_HOME=str(tmp_path), **environ)
    assert (status, "Error: " in said) == (255, True), said
    assert "secret" not in said


def test_check_due_that_fails_within_ends_with_255(capsys, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("appliance.authn.settings.resolve_requester", broken)
    status, said = never_zero(capsys, monkeypatch, [], XDG_CONFIG_HOME=str(tmp_path))
    assert (status, "ZeroDivisionError" in said) == (255, True)


def test_check_due_still_says_yes_and_no(capsys, monkeypatch, tmp_path):
    path = tmp_path / "k.p12"
    places = {"XDG_CONFIG_HOME": str(tmp_path), "EPICS_PVA_TLS_KEYCHAIN": str(path)}
    assert never_zero(capsys, monkeypatch, [], **places)[0] == 0
    path.touch(mode=0o600)
    path.write_bytes(dump_keychain(site().ca.keychain(not_after=NOW + 9 * DAY)))
    assert never_zero(capsys, monkeypatch, [], **places)[0] == 4
