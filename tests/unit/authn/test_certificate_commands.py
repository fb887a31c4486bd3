"""Command lines of pvxcert and the authenticators: what contradicts itself is refused before anything is done."""

import os
import subprocess

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.certs.keychain import dump_keychain
from appliance.certs.status import CertState
from appliance.cli import authnjwt, authnstd, pvxcert
from tests.helpers.pki import DAY, NOW, site

ID = "47530d89:3826361579604613180"


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """An account that has nothing, on a host that reaches nobody."""
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
        (["--own", ID], "--own needs --revoke"),
        (["-X", "-R", ID], "-X shows a certificate"),
        (["--pending"], "are for: pvxcert list"),
        (["--limit", "3", ID], "are for: pvxcert list"),
        (["-R", "list"], "not list"),
        (["-H", ID], "about itself"),
        (["-M", "-f", "x"], "about itself"),
        (["-H", "--issuer", "zz"], "is not an issuer ID"),
        (["--issuer", "47530d89", ID], "--issuer is for -H, -M and list"),
        (["--time-zone", "Europe/Berlin", ID], "--time-zone needs -S"),
        (["-S", "none"], "only of certificates that are named"),
        (["-S", "MON,08:00,17:00", "list"], "cannot be used with list"),
        (["-S", "show", "-S", "none", ID], "stands alone"),
        (["-S", "none", "--time-zone", "Europe/Berlin", ID], "stands alone"),
        (["-S", "MON,8:00,17:00", ID], "is not a time of the day"),
        (["-S", "MON", ID], "is not a window of a schedule"),
        (["-S", "MON,08:00,17:00", "--time-zone", "Europe/Bern", ID], "Europe/Bern"),
        (["-S", "show"], "request a certificate with authnjwt or authnstd"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["-A", "-D", ID],
        ["-S", "show", "-A", ID],
        ["-H", "-M"],
        ["--nonsense"],
        ["-w", "x", ID],
        ["-w", "nan", ID],
    ],
)
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
        ([], {"EPICS_PVA_TLS_KEYCHAIN": ";secret"}),
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


def damaged(path, kind):
    whole = dump_keychain(site().client)
    if kind == "circle":
        path.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "rounds":
        pem = path.with_suffix(".pem")
        key = site().client.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem.write_bytes(key + site().client.certificate.public_bytes(Encoding.PEM))
        slow = ["openssl", "pkcs12", "-export", "-in", pem, "-out", path, "-iter", "2100000", "-nomaciter"]
        subprocess.run([*slow, "-passout", "pass:"], check=True)
    else:
        content = {
            "junk": b"junk\n",
            "empty": b"",
            "cut": whole[:100],
            "password": dump_keychain(site().client, b"x"),
        }
        path.touch(mode=0o600)
        path.write_bytes(content[kind])


@pytest.mark.parametrize("tool", [authnstd, authnjwt])
@pytest.mark.parametrize("kind", ["junk", "empty", "cut", "rounds", "password", "circle", "fifo"])
def test_a_keychain_that_cannot_be_read_is_neither_due_nor_not_due(capsys, monkeypatch, tmp_path, tool, kind):
    """A unit's condition must fail aloud: the renewal behind it would refuse that file too."""
    path = tmp_path / "k.p12"
    damaged(path, kind)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("EPICS_PVA_TLS_KEYCHAIN", str(path))
    status = tool.main(["--check-due"])
    said = capsys.readouterr().err
    assert (status, said.count("Error: ")) == (255, 1)
    assert str(path) in said


def test_a_wrong_command_line_with_check_due_is_no_condition_that_does_not_hold(capsys):
    assert authnstd.main(["--check-due=1"]) == 255
    assert "Error: " in capsys.readouterr().err


def test_a_link_to_a_file_that_is_not_made_yet_is_due_and_no_error(capsys, monkeypatch, tmp_path):
    path = tmp_path / "k.p12"
    path.symlink_to(tmp_path / "later.p12")
    places = {"XDG_CONFIG_HOME": str(tmp_path), "EPICS_PVA_TLS_KEYCHAIN": str(path)}
    assert never_zero(capsys, monkeypatch, [], **places) == (0, "")


def test_a_keychain_whose_certificate_cannot_be_used_is_due_and_says_why(capsys, monkeypatch, tmp_path):
    path = tmp_path / "k.p12"
    path.touch(mode=0o600)
    below = site().ca.intermediate().keychain("deep")
    path.write_bytes(dump_keychain(below._replace(chain=(), anchors=site().other_ca.trust_only().anchors)))
    places = {"XDG_CONFIG_HOME": str(tmp_path), "EPICS_PVA_TLS_KEYCHAIN": str(path)}
    status, said = never_zero(capsys, monkeypatch, [], **places)
    assert (status, "incomplete" in said) == (0, True), said


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (pvxcert, ["-f", "/x.p12;geheim"]),
        (pvxcert, ["-f", "/x.p12;geheim", "list"]),
        (pvxcert, ["-R", "-f", "/x.p12;geheim"]),
        (pvxcert, ["-f", "/x.p12;geheim", "--json"]),
        (pvxcert, ["/x.p12;geheim"]),
        (pvxcert, ["-A", "/x.p12;geheim"]),
        (pvxcert, ["--trust-anchor", "/x.p12;geheim", "47530d89:1"]),
        (authnstd, ["--trust-anchor", "/x.p12;geheim"]),
        (authnjwt, ["--trust-anchor", "/x.p12;geheim"]),
        (authnstd, ["-a", "--trust-anchor", "/x.p12;geheim"]),
    ],
)
def test_a_password_behind_a_keychains_name_is_refused_by_every_option(
    capsys, caplog, monkeypatch, tmp_path, tool, arguments
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    arguments = [text.replace("/x.p12", str(tmp_path / "x.p12")) for text in arguments]
    assert tool.main(["-d", *arguments]) == 1
    told = capsys.readouterr()
    assert "semicolon" in told.err
    assert "geheim" not in told.out + told.err + caplog.text
    assert list(tmp_path.iterdir()) == []
