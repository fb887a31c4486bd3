"""``jwt-issuer``: the demonstration issuer and validator as a daemon."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from appliance.authn.jwt import uri
from appliance.config import loader
from appliance.daemon import logging as daemon_logging
from appliance.daemon.commandline import Parser, add_completion, add_daemon_options, add_version
from appliance.daemon.extras import require
from appliance.daemon.run import EXIT_FAILURE, EXIT_OK, Daemon, run
from appliance.errors import ApplianceError, ConfigurationError, TransportError
from appliance.issuer import passwords
from appliance.issuer.config import DEMO, IssuerConfig, with_environment
from appliance.issuer.keys import KeyStore

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp import web

__all__ = ["main"]

_NAME: Final = "jwt-issuer"
_EPILOG: Final = """\
Variables: PORT ISSUER DEFAULT_AUDIENCE DEFAULT_EXP_SECS ALGO KEY_DIR KID
HS_SECRET count where the file says nothing. SIGHUP makes a new signing key; the
old one stays published until its last token has ended.

examples:
  KEY_DIR=keys jwt-issuer
      the demonstration on 127.0.0.1:8080
  jwt-issuer --config issuer.yml --check-config
      only check the file
  jwt-issuer --add-user alice < password_file
      the lines for the file's users
"""
_SETTLE_S: Final = 600.0
"""Seconds for which a retired key stays published after its last token has expired, for validators with slow clocks."""

_log = logging.getLogger("appliance.issuer.daemon")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_NAME,
        usage="jwt-issuer [options]",
        description="Demonstration JWT issuer and validator: for trying out token authentication, not for production.",
        epilog=_EPILOG,
    )
    add_version(parser)
    add_completion(parser)
    what = add_daemon_options(
        parser,
        config="YAML configuration; without one: the demo on 127.0.0.1",
        verbose="also log unimportant requests",
    )
    what.add_argument(
        "--hash-password",
        action="store_true",
        help="read a password from standard input, print its hash and exit",
    )
    what.add_argument(
        "--add-user",
        metavar="NAME",
        help="read a password from standard input, print the lines for the file's 'users' and exit",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``jwt-issuer``; returns the exit status: 0, or 1 with one sentence on standard error."""
    options = _parser().parse_args(argv)
    try:
        _check_options(options)
        if options.print_schema:
            return _print(loader.schema_text(IssuerConfig))
        if options.hash_password:
            return _print(passwords.hash_password(_read_password()) + "\n")
        if options.add_user is not None:
            return _print(_user_lines(options.add_user, passwords.hash_password(_read_password())))
        config = _configuration(options.config)
        if options.check_config:
            return _print(f"{options.config or 'built-in demo configuration'}: good\n")
        if options.print_config:
            return _print(_shown(config))
        require("issuer")
    except ApplianceError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILURE
    daemon_logging.configure(level="DEBUG" if options.verbose else "INFO")

    async def serve(daemon: Daemon) -> None:
        await _serve(daemon, config)

    return run(serve, name=_NAME)


def _check_options(options: argparse.Namespace) -> None:
    """Refuse --config for an action that does not read the file."""
    for name in ("print_schema", "hash_password", "add_user"):
        if options.config is not None and getattr(options, name) not in (None, False):
            raise ConfigurationError(f"--config has no effect with --{name.replace('_', '-')}; leave it out")


def _configuration(file: str | None) -> IssuerConfig:
    if file is None:
        return with_environment(DEMO, os.environ)
    document = loader.load_document(file, IssuerConfig)
    return with_environment(document.value, os.environ, written=document.tree)


def _print(text: str) -> int:
    sys.stdout.write(text)
    return EXIT_OK


def _read_password() -> str:
    if sys.stdin.isatty():
        import getpass

        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise ConfigurationError("the two passwords differ")
    else:
        password = sys.stdin.readline(passwords.MAX_PASSWORD_BYTES + 2).rstrip("\r\n")
    if not password or "\0" in password:
        raise ConfigurationError("a password must not be empty or contain a NUL; give it on standard input")
    if len(password.encode("utf-8", "surrogatepass")) > passwords.MAX_PASSWORD_BYTES:
        raise ConfigurationError(f"a password must not be longer than {passwords.MAX_PASSWORD_BYTES} bytes")
    return password


def _user_lines(name: str, line: str) -> str:
    if not 0 < len(name) <= 64 or not name.isprintable():
        raise ConfigurationError("a user's name has 1 to 64 printable characters", key="--add-user")
    # JSON's strings are YAML's double-quoted ones.
    return f"  {msgspec.json.encode(name).decode()}:\n    password_hash: {line}\n"


def _shown(config: IssuerConfig) -> str:
    if config.hs_secret and not config.hs_secret.source:
        from appliance.config.secret import Secret

        config = msgspec.structs.replace(config, hs_secret=Secret("*" * 32, source="/from/HS_SECRET"))
    return loader.dump(config)


def _open_keys(config: IssuerConfig) -> KeyStore | None:
    if config.algo == "HS256":
        return None
    published_s = config.max_exp_secs + _SETTLE_S
    now = time.time()
    try:
        return KeyStore(config.key_dir, config.kid, published_s=published_s, now=now)
    except ConfigurationError as error:
        if config.key_dir != DEMO.key_dir:
            raise
        _log.warning(
            "%s; the signing key is kept in memory only: its tokens become invalid when this process ends",
            error,
        )
        return KeyStore("", config.kid, published_s=published_s, now=now)


def _tls(config: IssuerConfig) -> SSLContext | None:
    if not config.tls_certificate:
        return None
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the certificate {config.tls_certificate} or its key {config.tls_key} cannot be used: {error}",
            key="tls_certificate",
        ) from None
    return context


class _QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's view of our log: without stack traces and exception texts, which quote request lines."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        error = kwargs.pop("exc_info", None)
        kind = type(error).__name__ if isinstance(error, BaseException) else "error"
        return f"{str(msg).partition(':')[0]} ({kind})", kwargs


async def _serve(daemon: Daemon, config: IssuerConfig) -> None:
    from aiohttp import web

    from appliance.issuer.app import MAX_LINE_BYTES, Issuer

    if config.demo:
        import warnings

        from jwt.warnings import InsecureKeyLengthWarning

        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
    keys = _open_keys(config)
    issuer = Issuer(config, keys)
    _log.warning("this is a demonstration issuer: production systems must not trust its tokens")
    if config.demo:
        _log.warning("demo configuration: anyone on this machine gets a token for any subject")

    def rotate() -> None:
        if keys is None:
            raise ConfigurationError("HS256 has no key to rotate: change hs_secret and restart", key="algo")
        _log.info("tokens are signed with the new key %s from now on", keys.rotate(time.time()))

    daemon.on_reload(rotate)
    runner = web.AppRunner(
        issuer.application(),
        access_log=None,
        logger=_QuietLogger(logging.getLogger("appliance.issuer.http"), {}),
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        keepalive_timeout=75.0,
        shutdown_timeout=2.0,
    )
    await runner.setup()
    try:
        where = await _listen(runner, config)
        _log.info("listening on %s, issuer %s", " ".join(where), config.issuer)
        daemon.ready(f"listening on {' '.join(where)}")
        await daemon.wait()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, config: IssuerConfig) -> list[str]:
    from aiohttp import web

    tls = _tls(config)
    scheme = "http" if tls is None else "https"
    if tls is None and not all(uri.is_loopback(address) for address in config.listen):
        _log.warning("passwords and tokens cross the network in the clear: set tls_certificate and tls_key")
    where = []
    for address in config.listen:
        site = web.TCPSite(runner, address, config.port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            raise TransportError(
                f"cannot listen on {address} port {config.port}: {error.strerror or error}; is another issuer running?"
            ) from None
        host, port, *_ = runner.addresses[-1]
        where.append(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    return where


if __name__ == "__main__":
    sys.exit(main())
