import copy
import os
import pickle
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.config.files import read_private, sweep, write_private, write_public
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError


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

    def look(source, target):
        found = Path(source).stat()
        named.append((found.st_uid, found.st_gid))
        rename(source, target)

    monkeypatch.setattr(os, "rename", look)
    owner = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    write_private(tmp_path / "key", b"x", owner=owner)
    assert named == [owner]
    status = (tmp_path / "key").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*owner, 0o600)


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
