"""Where a token comes from: files that somebody refreshes, programs, standard input."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.authn.jwt.sources import CommandSource, FileSource, OAuthSource, StdinSource, open_source
from appliance.errors import ConfigurationError, SecurityError, TokenUnavailable
from tests.helpers.tokens import IdP, T

END = datetime.fromtimestamp(T + 3600, UTC)
TOKEN = IdP().token()
OTHER = IdP().token(jti="other", exp=T + 7200)


def put(file: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file in one step, as programs that refresh tokens do."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(file)


# -- files ----------------------------------------------------------------------------------------------


async def test_a_file_gives_each_token_that_somebody_puts_there(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "token"
    put(file, f"{TOKEN}\n", 0o644)
    source = FileSource(str(file), said.append)
    assert source.name == str(file)
    first = await source.fetch(better_than=END - timedelta(seconds=1))
    assert first.text == TOKEN
    assert (await source.fetch()).text == TOKEN, "until the service has answered, it may be sent again"
    source.sent(first)
    with pytest.raises(TokenUnavailable, match="still gives the token that was used already") as caught:
        await source.fetch()
    assert caught.value.kind == "none"
    put(file, OTHER, 0o644)
    assert (await source.fetch(better_than=END)).text == OTHER
    assert len(said) == 1, "the warning about the file's mode comes once"
    await source.close()


async def test_a_token_that_ends_too_early_is_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "token"
    put(file, TOKEN)
    source = FileSource(str(file), print)
    with pytest.raises(
        TokenUnavailable, match="ends at Sun Mar 01 13:00:00 2026 UTC; one that ends after"
    ) as caught:
        await source.fetch(better_than=END)
    assert caught.value.kind == "none"


@pytest.mark.parametrize("jti", ["one", ...])
async def test_the_identifier_tells_tokens_apart_and_without_one_the_text_does(
    tmp_path: Path, jti: Any
) -> None:
    file = tmp_path / "token"
    source = FileSource(str(file), print)
    put(file, IdP().token(jti=jti))
    source.sent(await source.fetch())
    put(file, IdP().token(jti=jti, exp=T + 9999))
    if jti == "one":
        with pytest.raises(TokenUnavailable):
            await source.fetch()
    else:
        assert (await source.fetch()).claims["exp"] == T + 9999


async def test_a_file_is_read_only_if_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    put(file, TOKEN)
    source = FileSource(str(file), print)
    token = await source.fetch()
    assert await source.fetch() is token
    before = file.stat()
    put(file, TOKEN)
    assert file.stat().st_ino != before.st_ino or file.stat().st_mtime_ns != before.st_mtime_ns
    assert await source.fetch() is not token


async def test_a_file_that_is_missing_or_holds_no_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    source = FileSource(str(file), print)
    with pytest.raises(ConfigurationError, match="cannot read: No such file"):
        await source.fetch()
    put(file, "")
    with pytest.raises(ConfigurationError, match="holds no token"):
        await source.fetch()
    put(file, "a.b.c")
    with pytest.raises(SecurityError, match="holds no usable JSON Web Token"):
        await source.fetch()
    put(file, TOKEN)
    assert (await source.fetch()).text == TOKEN


async def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(f"{TOKEN}\n".encode()))
    monkeypatch.setattr(sys, "stdin", pipe)
    source = StdinSource(print)
    token = await source.fetch()
    assert (token.text, source.name) == (TOKEN, "standard input")
    source.sent(token)
    await source.close()


# -- commands -------------------------------------------------------------------------------------------


def program(tmp_path: Path, text: str) -> str:
    file = tmp_path / "the program"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o700)
    return f"'{file}' --for 'a site'"


async def test_a_command_prints_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "token").write_text(TOKEN)
    text = f"""
printf '%s|' "$@" > {tmp_path}/arguments
env > {tmp_path}/environment
echo "refreshed {TOKEN}" >&2
cat {tmp_path}/token
"""
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTIFY_SOCKET", "/run/notify")
        patch.setenv("EPICS_PVA_ADDR_LIST", "127.0.0.1")
        source = CommandSource(program(tmp_path, text))
        token = await source.fetch()
    assert token.text == TOKEN
    assert (tmp_path / "arguments").read_text() == "--for|a site|", "no shell takes it apart"
    environment = (tmp_path / "environment").read_text()
    assert "NOTIFY_SOCKET" not in environment
    assert "EPICS_PVA_ADDR_LIST" in environment
    assert "refreshed <token>" in caplog.text
    assert TOKEN not in caplog.text
    source.sent(token)
    with pytest.raises(TokenUnavailable, match="used already"):
        await source.fetch()
    await source.close()


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ("exit 3", "unreachable", r"failed \(exit status 3\); its messages are in the log"),
        ("kill -9 $$", "unreachable", r"failed \(signal 9\)"),
        ("echo hello", "refused", "no usable JSON Web Token"),
        ("", "refused", "no usable JSON Web Token"),
        ("head -c 100000 /dev/zero", "refused", "prints more than 16384 bytes"),
    ],
)
async def test_a_command_that_gives_no_token(tmp_path: Path, text: str, kind: str, why: str) -> None:
    with pytest.raises(TokenUnavailable, match=why) as caught:
        await CommandSource(program(tmp_path, text)).fetch()
    assert caught.value.kind == kind


async def test_a_command_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    # The second program holds the FIFO open for writing, so that reading it ends when it is gone.
    source = CommandSource(program(tmp_path, f"sleep 1000 > '{fifo}' & sleep 1000"), timeout_s=0.5)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(TokenUnavailable, match="printed no token within"):
            await source.fetch()
        os.set_blocking(reader, True)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


async def test_messages_of_a_command_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "i=0; while [ $i -lt 500 ]; do printf 'line \\033[2J %s\\n' $i >&2; i=$((i+1)); done; exit 1"
    with pytest.raises(TokenUnavailable):
        await CommandSource(program(tmp_path, text)).fetch()
    assert len(caplog.records) == 20
    assert "\x1b" not in caplog.text


async def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(TokenUnavailable, match="cannot be started: No such file") as caught:
        await CommandSource(f"{tmp_path}/nothing here").fetch()
    assert caught.value.kind == "refused"


@pytest.mark.parametrize(
    ("command", "why"),
    [("", "names no program"), ("a 'b", "not a command line"), (f"echo {TOKEN}", "treat it as exposed")],
)
def test_command_lines_that_are_refused(command: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        CommandSource(command)
    assert "eyJ" not in str(caught.value)


# -- which one ------------------------------------------------------------------------------------------


def choose(tmp_path: Path, environ: dict[str, str] | None = None, **named: str) -> Any:
    given: dict[str, str | None] = {"token_file": None, "token_command": None, "oauth": None, **named}
    return open_source(**given, keychain=str(tmp_path / "client.p12"), environ=environ or {}, say=print)


async def test_one_source_is_chosen(tmp_path: Path) -> None:
    assert isinstance(choose(tmp_path, token_file="-"), StdinSource)
    assert isinstance(choose(tmp_path, token_file="/run/token"), FileSource)
    assert isinstance(choose(tmp_path, {"EPICS_AUTH_JWT_FILE": "/run/token"}), FileSource)
    by_command = choose(tmp_path, {"EPICS_AUTH_JWT_FILE": "/run/token"}, token_command="get-token")
    assert (type(by_command), by_command.name) == (CommandSource, "get-token")
    secret = tmp_path / "secret"
    put(secret, "of the client")
    file = tmp_path / "oauth.yml"
    put(
        file,
        f"grant: client_credentials\nissuer: https://idp.example\nclient_id: c\nclient_secret: ${{file:{secret}}}\n",
    )
    by_provider = choose(tmp_path, oauth=str(file))
    assert (type(by_provider), by_provider.name) == (OAuthSource, "https://idp.example")
    await by_provider.close()


def test_two_sources_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--token-file and --oauth: name one source of tokens only"):
        choose(tmp_path, token_file="a", oauth="b")
    with pytest.raises(ConfigurationError, match="no token was given"):
        choose(tmp_path)


async def test_a_refresh_token_is_kept_beside_the_keychain(tmp_path: Path) -> None:
    file = tmp_path / "oauth.yml"
    put(file, "grant: device_code\nissuer: https://idp.example\nclient_id: c\nclient_auth: none\n")
    source = choose(tmp_path, oauth=str(file))
    source._client._keep("secret", SimpleNamespace(token="https://idp.example/token"))
    kept = tmp_path / "client.p12.refresh"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    await source.close()
