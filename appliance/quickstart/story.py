"""The story of the quick start with real programs: each command as a user would type it, with its output.

Every step checks its output; a step with any other output ends the story with an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

from appliance.errors import ApplianceError
from appliance.quickstart.directory import Hold
from appliance.quickstart.layout import Layout
from appliance.quickstart.services import ChildDaemon, module_command

__all__ = ["Story"]

COMMAND_TIMEOUT_S: Final = 20.0
REVOKED: Final = 4
"""Exit status with which ``pvxcert`` says that a certificate is revoked."""
PASSWORD: Final = "secret"  # noqa: S105 - the demonstration issuer's, as in the guide that this follows


class Story:
    """Runs the story on the stack in ``layout``; ``services`` collects the daemons that it starts."""

    def __init__(self, layout: Layout, out: TextIO = sys.stdout) -> None:
        self.layout = layout
        self.services: list[ChildDaemon] = []
        self.renewed: dict[str, str] = {}
        """Roles whose certificates came from tokens and must be renewed, each with its usage."""
        self.hold: Hold | None = None
        """What the daemons inherit; None if nobody else can use the directory (tests)."""
        self.token_life_s: int | None = None
        """Lifetime that the issuer is asked for; None: its default, an hour."""
        self._out = out

    # -- telling -------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print at once, so that the user sees the progress."""
        print(text, file=self._out, flush=True)

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self.say(f"\n=== {title} ===")

    async def run(
        self,
        role: str,
        words: list[str],
        *expected: str,
        status: int = 0,
        quiet: bool = False,
    ) -> str:
        """Run one command as ``role``, print it and its output, and check the output.

        With ``quiet`` nothing is printed, and an error includes the command's output.
        """
        if not quiet:
            self.say(f"\n{role}$ {shell_text(words)}")
        process = await asyncio.create_subprocess_exec(
            *module_command(words),
            env=self.layout.environment(role),
            cwd=self.layout.home(role),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                raw, _ = await process.communicate()
        except TimeoutError:
            raise ApplianceError(f"{words[0]} did not end in {COMMAND_TIMEOUT_S:.0f} s") from None
        finally:
            await ended(process)
        output = raw.decode("utf-8", "replace").rstrip()
        if output and not quiet:
            self.say(output)
        if process.returncode != status:
            said = f": {output.splitlines()[-1]}" if quiet and output else ""
            raise ApplianceError(
                f"{words[0]} ended with status {process.returncode}; {status} was expected{said}"
            )
        for text in expected:
            if text not in output:
                raise ApplianceError(f"{words[0]} did not print {text!r}")
        return output

    async def serve(self, role: str, name: str, words: list[str]) -> ChildDaemon:
        """Start a daemon as ``role`` and wait until it serves."""
        self.say(f"\n{role}$ {shell_text(words)}   &")
        start = time.monotonic()
        service = await self._start(name, words, self.layout.environment(role))
        self.say(
            f"{name} is ready after {time.monotonic() - start:.1f} s{': ' if service.status else ''}{service.status}"
        )
        return service

    async def _start(self, name: str, words: list[str], environment: dict[str, str]) -> ChildDaemon:
        hold = self.hold
        service = ChildDaemon(
            name, words, environment, self.layout.log(name), inherited=() if hold is None else (hold.fd,)
        )
        self.services.append(service)
        await service.start()
        if hold is not None:
            hold.write_down([os.getpid(), *(each.pid for each in self.services)])
        return service

    async def stop(self) -> None:
        """Stop all daemons, the latest first."""
        for service in reversed(self.services):
            with contextlib.suppress(ProcessLookupError):
                await service.stop()

    # -- the story -----------------------------------------------------------------------------------

    async def services_up(self) -> None:
        """Start the identity provider and the certificate service."""
        layout = self.layout
        self.chapter("1. An identity provider and the certificate management service")
        issuer = {
            "PORT": str(layout.ports.issuer),
            "ISSUER": layout.issuer_url,
            "KEY_DIR": str(layout.root / "issuer"),
        }
        self.say(f"\npvacms$ PORT={layout.ports.issuer} jwt-issuer   &")
        service = await self._start("jwt-issuer", ["jwt-issuer"], layout.environment("pvacms") | issuer)
        self.say(f"jwt-issuer is ready{': ' if service.status else ''}{service.status}")
        words = ["pvacms", "--certs-dont-require-approval", "-a", str(layout.keychain("admin"))]
        if "gateway" in layout.roles:
            words += ["--config", str(layout.write_service_file())]
        await self.serve("pvacms", "pvacms", words)

    async def token(self, role: str, subject: str, *, quiet: bool = False) -> None:
        """Get a token as with ``curl``, verify it, and write it to a file that only the role can read."""
        base = self.layout.issuer_url
        say = (lambda _: None) if quiet else self.say
        say(
            f'\n{role}$ TOKEN=$(curl -s "{base}/token?sub={subject}&password={PASSWORD}"); echo ${{TOKEN}} > token_file'
        )
        query = {"sub": subject, "password": PASSWORD}
        if self.token_life_s is not None:
            query["exp_secs"] = str(self.token_life_s)
        token = await fetch(f"{base}/token?{urllib.parse.urlencode(query)}")
        path = self.layout.home(role) / "token_file"
        path.touch(mode=0o600)
        path.write_text(token + "\n")
        say(f'\n{role}$ curl -sG --data-urlencode "token=$TOKEN" "{base}/verify"')
        verdict = await fetch(f"{base}/verify?{urllib.parse.urlencode({'token': token})}")
        say(verdict)
        if '"valid":true' not in verdict.replace(" ", "") or f'"sub":"{subject}"' not in verdict.replace(
            " ", ""
        ):
            raise ApplianceError("the issuer does not say that its own token is valid")

    async def request(self, role: str, usage: str, *options: str, quiet: bool = False) -> None:
        """Get a token for the role, and a certificate for the token. From now on it is renewed."""
        await self.token(role, role, quiet=quiet)
        words = ["authnjwt", *(() if usage == "client" else ("-u", usage)), "--token-file", "token_file"]
        await self.run(
            role,
            [*words, *options],
            f"Keychain file created   : {self.layout.keychain(role)}",
            "Certificate identifier  : ",
            quiet=quiet,
        )
        self.renewed[role] = usage

    async def certificates(self) -> None:
        """Turn tokens into certificates."""
        layout = self.layout
        self.chapter("2. The IOC's token becomes a server certificate")
        await self.request("softioc", "server")
        await self.run(
            "softioc",
            ["pvxcert", "-f", str(layout.keychain("softioc"))],
            "Entity Subject : CN=softioc, O=localhost",
            "Status        : VALID",
        )
        self.chapter("3. The user's token becomes a client certificate")
        for role in ("client", "operator"):
            await self.request(role, "client")
        await self.run(
            "client",
            ["pvxcert", "-f", str(layout.keychain("client"))],
            "Entity Subject : CN=client, O=localhost",
            "Status        : VALID",
        )

    async def ioc_up(self) -> None:
        """Start the IOC with the example databases."""
        self.chapter("4. The IOC")
        data = Path(__file__).parent / "data"
        words = ["softIocPVX", "-S", "-m", "user=test,N=tst,P=tst"]
        for name in sorted(path.name for path in data.glob("*.db")):
            words += ["-d", str(data / name)]
        for name in sorted(path.name for path in data.glob("*.json")):
            words += ["-G", str(data / name)]
        words += ["-a", str(data / "ioc.acf")]
        await self.serve("softioc", "softioc", words)

    async def secure_reading(self) -> None:
        """Read over TLS."""
        self.chapter("5. Reading over TLS")
        await self.run("client", ["pvxget", "-F", "tree", "test:structExample"], "test:structExample")
        await self.run(
            "client",
            ["pvxinfo", "-v", "test:enumExample"],
            "Effective config",
            "# TLS x509:",
            "EPICS Root Certificate Authority/softioc@127.0.0.1:",
            'struct "epics:nt/NTEnum:1.0"',
        )

    async def access_security(self) -> None:
        """Show who may write what."""
        self.chapter("6. Access security: the client may not, the operator may")
        await self.run("client", ["pvxput", "test:spec", "4.5"], "denied", status=1)
        await self.run("operator", ["pvxput", "test:spec", "4.5"])
        await self.run("operator", ["pvxget", "test:spec"], "4.5")

    async def revocation(self) -> None:
        """Revoke a certificate as administrator, which ends a live subscription."""
        self.chapter("7. A revocation closes a live monitor")
        await self.revoke_while_watching("client", 1.0)

    async def revoke_while_watching(self, role: str, promised_s: float) -> None:
        """Start a monitor as ``role``, revoke the role's certificate, and see the monitor's connection closed.

        Args:
            role: The role.
            promised_s: Seconds in which the connection must be closed.

        Raises:
            ApplianceError: It was not.
        """
        self.renewed.pop(role, None)
        identifier = certificate_id(await self.run(role, ["pvxcert", "-f", str(self.layout.keychain(role))]))
        words = ["pvxmonitor", "test:calcExample"]
        self.say(f"\n{role}$ {shell_text(words)}   &")
        monitor = await asyncio.create_subprocess_exec(
            *module_command(words),
            env=self.layout.environment(role),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert monitor.stdout is not None
        try:
            await self._until(monitor.stdout, lambda line: "value" in line)
            await self.run("admin", ["pvxcert", "-R", identifier])
            start = time.monotonic()
            line = await self._until(monitor.stdout, lambda line: line.endswith("Disconnected"))
            took = time.monotonic() - start
            self.say(f"... the monitor ended {took:.2f} s after the revocation: {line}")
            if took > promised_s:
                raise ApplianceError(
                    f"the revocation took {took:.1f} s to close the connection; {promised_s:.0f} s is promised"
                )
        finally:
            await ended(monitor)
        await self.run(role, ["pvxcert", identifier], "Status        : REVOKED", status=REVOKED)

    async def _until(self, stream: asyncio.StreamReader, wanted: Callable[[str], bool]) -> str:
        shown = 0
        while True:
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    raw = await stream.readline()
            except TimeoutError:
                raise ApplianceError("the monitor printed nothing of what was expected") from None
            if not raw:
                raise ApplianceError("the monitor ended by itself")
            line = raw.decode("utf-8", "replace").rstrip()
            if shown < 8:
                self.say(line)
                shown += 1
            if wanted(line):
                return line

    async def tell(self) -> None:
        """Show the whole story."""
        await self.services_up()
        await self.certificates()
        await self.ioc_up()
        await self.secure_reading()
        await self.access_security()
        await self.revocation()


def shell_text(words: list[str]) -> str:
    """Return a command as a user would type it."""
    import shlex

    return " ".join(shlex.quote(word) for word in words)


async def ended(process: asyncio.subprocess.Process) -> None:
    """Make sure that a command has ended, also if the story is interrupted."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def certificate_id(output: str) -> str:
    """Return the identifier in what ``pvxcert`` printed."""
    for line in output.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Certificate ID":
            return value.strip()
    raise ApplianceError("pvxcert printed no certificate identifier")


async def fetch(url: str) -> str:
    """Send a GET to the issuer, which is on loopback."""

    def get() -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as response:
            text: str = response.read(65536).decode()
            return text.strip()

    try:
        return await asyncio.to_thread(get)
    except OSError as error:
        raise ApplianceError(f"the issuer did not answer: {error}") from error
