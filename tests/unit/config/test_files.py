import copy
import os
import pickle
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.certs.keychain import dump_keychain, load_keychain
from appliance.config.files import (
    check_replaceable,
    make_directories,
    read_private,
    read_trusted,
    replace_private,
    sweep,
    write_private,
    write_public,
)
from appliance.config.keychain_path import split_password
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError, KeychainError
from tests.helpers.pki import site
from tests.helpers.sandbox import run_without_chown


@pytest.fixture(params=[0o000, 0o077, 0o777])
def _umask(request):
    former = os.umask(request.param)
    yield
    os.umask(former)


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize(("write", "mode"), [(write_private, 0o600), (write_public, 0o644)])
def test_a_file_is_replaced_whole_with_its_mode_whatever_the_umask(write, mode, tmp_path):
    path = tmp_path / "key"
    write(path, b"one")
    inode = path.stat().st_ino
    with path.open("rb") as former:
        write(path, b"two" * 100_000)
        assert former.read() == b"one"
    assert path.read_bytes() == b"two" * 100_000
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.stat().st_ino != inode
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "key/x").touch()
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_private(tmp_path / "key", b"x")
    with pytest.raises(ConfigurationError, match="No such file"):
        write_private(tmp_path / "no/key", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_symbolic_link_is_replaced_and_its_target_left_alone(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    (tmp_path / "key").symlink_to(target)
    write_private(tmp_path / "key", b"new")
    assert target.read_bytes() == b"old"
    assert not (tmp_path / "key").is_symlink()


def test_the_owner_is_set_before_the_file_has_its_name(tmp_path, monkeypatch):
    """A chown by name would follow a link that the directory's owner puts there in time."""
    named = []
    rename = os.rename

    def look(source, target, **directories):
        found = (tmp_path / source).stat()
        named.append((found.st_uid, found.st_gid))
        rename(source, target, **directories)

    monkeypatch.setattr(os, "rename", look)
    owner = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    write_private(tmp_path / "key", b"x", owner=owner)
    assert named == [owner]
    status = (tmp_path / "key").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*owner, 0o600)


@pytest.mark.usefixtures("_umask")
def test_missing_directories_are_their_owners_only_all_the_way_up_whatever_the_umask(tmp_path):
    make_directories(tmp_path / "a/b/c")
    for path in ("a", "a/b", "a/b/c"):
        assert not stat.S_IMODE((tmp_path / path).lstat().st_mode) & 0o077


def test_directories_that_are_there_stay_as_they_are(tmp_path):
    (tmp_path / "a").mkdir(mode=0o755)
    make_directories(tmp_path / "a/b")
    make_directories(f"{tmp_path}/a/b/")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot make the directory"):
        make_directories(tmp_path / "file/b")


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_a_replaced_file_keeps_owner_group_and_mode(tmp_path, mode):
    path = tmp_path / "k.p12"
    path.write_bytes(b"old")
    root = os.geteuid() == 0
    os.chown(path, 0 if root else -1, 12 if root else -1)
    path.chmod(mode)
    assert replace_private(path, b"new") == []
    found = path.stat()
    assert path.read_bytes() == b"new"
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (12 if root else os.getegid(), mode)


_REPLACE = """
import os, sys
from appliance.config.files import replace_private
try:
    os.chown(sys.argv[1], -1, os.getegid())
except PermissionError:
    print(*replace_private(sys.argv[1], b"new"), sep="\\n")
"""


def test_a_sandbox_without_chown_says_nothing_of_a_group_that_is_kept(tmp_path):
    """systemd's @privileged has chown, so each renewal in a unit told that the group had lost its access."""
    path = tmp_path / "k.p12"
    path.write_bytes(b"old")
    path.chmod(0o640)
    assert run_without_chown(_REPLACE, path).strip() == ""
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)


@pytest.mark.parametrize("mode", [0o640, 0o600])
def test_a_group_that_is_not_kept_is_told_with_what_to_do_if_it_had_access(tmp_path, mode):
    path = tmp_path / "a b.p12"
    path.write_bytes(b"old")
    root = os.geteuid() == 0
    os.chown(path, -1, 12 if root else -1)
    path.chmod(mode)
    said = run_without_chown(_REPLACE, path).strip()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600 if root else mode)
    if mode == 0o600 or not root:
        assert said == ""
    else:
        assert "cannot be given back to its group 12" in said
        assert said.endswith(f"as root: chgrp 12 '{path}' && chmod 0640 '{path}'")


def test_a_replaced_file_is_closed_to_every_user(tmp_path):
    path = tmp_path / "k.p12"
    path.write_bytes(b"old")
    path.chmod(0o644)
    (said,) = replace_private(path, b"new")
    assert "its mode is now 0640" in said
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_is_its_owners_only(tmp_path):
    assert replace_private(tmp_path / "k.p12", b"new") == []
    assert stat.S_IMODE((tmp_path / "k.p12").stat().st_mode) == 0o600


@pytest.mark.parametrize("relative", [True, False])
def test_where_a_link_leads_is_written_and_the_link_stays(tmp_path, relative):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/k.p12").write_bytes(b"old")
    (tmp_path / "real/k.p12").chmod(0o640)
    link = tmp_path / "k.p12"
    link.symlink_to("real/k.p12" if relative else tmp_path / "real/k.p12")
    check_replaceable(link)
    replace_private(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "real/k.p12").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real/k.p12").stat().st_mode) == 0o640
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["k.p12"]


def test_a_link_that_leads_nowhere_yet_is_written_where_it_leads(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "k.p12").symlink_to("real/k.p12")
    replace_private(tmp_path / "k.p12", b"new")
    assert (tmp_path / "real/k.p12").read_bytes() == b"new"


def test_a_place_that_cannot_be_written_is_known_before_it_is_needed(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        check_replaceable(tmp_path / "no/k.p12")
    with pytest.raises(ConfigurationError, match="is a directory"):
        check_replaceable(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        check_replaceable(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        replace_private(tmp_path / "fifo", b"new")
    if os.path.ismount("/sys"):
        with pytest.raises(ConfigurationError):
            check_replaceable("/sys/k.p12")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigurationError):
        check_replaceable(tmp_path / "loop")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("mode", "finding"), [(0o600, ""), (0o400, ""), (0o640, "group"), (0o660, "group")])
def test_a_private_file_is_read_and_group_access_reported(mode, finding, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"x")
    path.chmod(mode)
    read = read_private(path, 1)
    assert read.data == b"x"
    assert bool(read.finding) == bool(finding)
    assert finding in read.finding


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o777])
def test_a_private_file_that_everybody_may_reach_is_refused(mode, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        read_private(path, 10)
    assert "every user" in read_private(path, 10, strict=False).finding


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: None], ids=["directory", "fifo", "missing"]
)
def test_what_is_no_regular_file_is_refused_without_hanging(make, tmp_path):
    make(tmp_path / "key")
    with pytest.raises(ConfigurationError):
        read_private(tmp_path / "key", 10)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["directory", "fifo"])
@pytest.mark.parametrize("read", [read_private, read_trusted])
def test_what_is_no_regular_file_is_named_so_and_stays_open_nowhere(make, read, tmp_path):
    make(tmp_path / "key")
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="not a regular file"):
            read(tmp_path / "key", 10)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_private_file_beyond_its_limit_is_refused(tmp_path):
    write_private(tmp_path / "key", b"x" * 11)
    with pytest.raises(ConfigurationError, match="10 bytes"):
        read_private(tmp_path / "key", 10)


def test_a_secret_shows_nowhere(tmp_path):
    write_private(tmp_path / "pwd", b"geheim\r\n")
    secret = Secret.from_file(tmp_path / "pwd")
    assert secret.reveal() == "geheim"
    assert secret == Secret("geheim") != Secret("other")
    assert hash(secret) == hash(Secret("geheim"))
    assert "geheim" not in f"{secret} {secret!r} {secret:>20} {[secret]} %s" % secret
    assert not Secret()
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)


def test_a_secret_that_is_no_text_is_refused_without_its_bytes(tmp_path):
    write_private(tmp_path / "pwd", b"geheim\xff")
    with pytest.raises(ConfigurationError, match="UTF-8") as caught:
        Secret.from_file(tmp_path / "pwd")
    assert "geheim" not in repr(caught.value.__context__) or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "content", [b"secret", b"secret\n", b"secret\r\n", b"secret\n\n", b"secret\nsecond", b"secret\n\xff"]
)
def test_a_password_is_the_first_line_of_its_file(tmp_path, content):
    """As ``openssl -passin file:`` takes it."""
    write_private(tmp_path / "pwd", content)
    secret = Secret.first_line(tmp_path / "pwd", setting="EPICS_PVA_TLS_KEYCHAIN_PWD_FILE")
    assert (secret.reveal(), secret.finding) == ("secret", "")


@pytest.mark.parametrize("content", [b"", b"\n", b"\nsecret"])
def test_an_empty_password_file_is_named_with_the_setting_that_names_it(tmp_path, content):
    write_private(tmp_path / "pwd", content)
    secret = Secret.first_line(tmp_path / "pwd", setting="EPICS_PVA_TLS_KEYCHAIN_PWD_FILE")
    assert not secret
    assert f"{tmp_path}/pwd, named by EPICS_PVA_TLS_KEYCHAIN_PWD_FILE, is empty" in secret.finding
    with pytest.raises(KeychainError, match=r"the one in .*PWD_FILE\) is empty") as caught:
        load_keychain(dump_keychain(site().client, b"secret"), secret)
    assert "none was given" not in str(caught.value)


def test_a_wrong_password_names_where_it_came_from(tmp_path):
    data = dump_keychain(site().client, b"secret")
    write_private(tmp_path / "pwd", b"wrong")
    in_file = Secret.first_line(tmp_path / "pwd", setting="EPICS_PVA_TLS_KEYCHAIN_PWD_FILE")
    _, behind_name = split_password("/k.p12;wrong", "EPICS_PVA_TLS_KEYCHAIN")
    _, nothing_behind = split_password("/k.p12;", "EPICS_PVA_TLS_KEYCHAIN")
    for password, why in (
        (in_file, rf"check the password in {tmp_path}/pwd \(EPICS_PVA_TLS_KEYCHAIN_PWD_FILE\)$"),
        (behind_name, r"check the password in EPICS_PVA_TLS_KEYCHAIN$"),
        (nothing_behind, r"the one in EPICS_PVA_TLS_KEYCHAIN is empty"),
        (b"wrong", r"check the password$"),
    ):
        with pytest.raises(KeychainError, match=why):
            load_keychain(data, password)


def left(directory, name, *, process, age_s):
    path = directory / f".{name}.{process:x}.{age_s:012x}"
    path.write_bytes(b"half")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_what_killed_writers_have_left_is_swept_and_nothing_else(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    dead = int(gone.stdout)
    swept = [
        left(tmp_path, "file", process=dead, age_s=5),
        left(tmp_path, "file", process=os.getpid(), age_s=120),
    ]
    kept = [
        left(tmp_path, "file", process=os.getpid(), age_s=5),
        left(tmp_path, "other", process=dead, age_s=120),
        tmp_path / ".file.0123456789ab",
        tmp_path / "file.1.0123456789ab",
    ]
    for path in kept[2:]:
        path.write_bytes(b"mine")
    write_private(tmp_path / "file", b"whole")
    assert not any(path.exists() for path in swept)
    assert all(path.exists() for path in kept)
    sweep(str(tmp_path))
    assert not kept[1].exists()
    assert all(path.exists() for path in (kept[0], *kept[2:]))
