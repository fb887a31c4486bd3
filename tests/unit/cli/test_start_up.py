"""What a tool imports, for that is what its user waits for; completion scripts; entry points."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = ("pvxget", "pvxput", "pvxmonitor", "pvxinfo", "pvxlist", "pvxcall")


def python(code: str, *arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EPICS_", "PVXS_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**kept, "PYTHONPATH": str(ROOT), "EPICS_PVA_AUTO_ADDR_LIST": "NO", "EPICS_PVA_TLS_KEYCHAIN": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(tool: str, *arguments: str) -> set[str]:
    """Run a tool to its end in a process of its own, and tell what that imported."""
    code = (
        f"import sys; from appliance.cli.{tool} import main; main(sys.argv[1:]); found = sorted(sys.modules);"
        " import json; print(json.dumps(found))"
    )
    return set(json.loads(python(code, *arguments).splitlines()[-1]))


def test_a_plain_get_imports_nothing_that_it_does_not_need() -> None:
    heavy = {
        "numpy", "uvloop", "ssl", "_ssl", "dataclasses", "cryptography", "OpenSSL", "msgspec", "yaml", "json", "shtab",
        "ctypes", "shutil", "lzma", "urllib", "http", "email", "pathlib", "datetime", "appliance.certs", "appliance.tls",
        "appliance.server", "appliance.daemon.logging", "appliance.certmon.client", "appliance.pvdata.jsonio",
    }  # fmt: skip
    # What the interpreter itself loads (an editable installation's finder) is not the tool's doing.
    bare = set(
        json.loads(python("import sys; found = sorted(sys.modules); import json; print(json.dumps(found))"))
    )
    assert (modules_after("pvxget", "nope", "-w", "0") - bare) & heavy == set()


def test_a_program_with_a_plain_context_imports_nothing_of_certificates() -> None:
    code = "import sys, json; from appliance import Context; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(python(code))
    assert [
        name for name in loaded if name == "datetime" or name.startswith(("appliance.certs", "appliance.tls"))
    ] == []


def test_the_certificate_service_imports_what_only_some_need_when_they_need_it() -> None:
    """A tenth of its start each: numpy for the first status, SQLAlchemy's part for PostgreSQL for a database server."""
    code = "import sys, json, appliance.cms.service; print(json.dumps(sorted(sys.modules)))"
    assert (
        set(json.loads(python(code))) & {"numpy", "sqlalchemy.dialects.postgresql", "psycopg", "pkcs11"}
        == set()
    )


def test_help_starts_no_event_loop() -> None:
    code = (
        "import sys, json, contextlib, io\n"
        "from appliance.cli.pvxget import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['-h'])\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = set(json.loads(python(code)))
    assert loaded & {"asyncio", "appliance.client", "appliance.config.pva"} == set()


def test_who_imports_ssl_later_gets_it() -> None:
    code = (
        "import sys; from appliance.cli.pvxget import main; main(['nope', '-w', '0']);"
        " assert 'ssl' not in sys.modules; import ssl; print(ssl.OPENSSL_VERSION)"
    )
    assert "SSL" in python(code)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -o"), ("zsh", "#compdef"), ("tcsh", "complete ")]
)
def test_completion_scripts(tool: str, shell: str, sign: str) -> None:
    code = f"import sys; from appliance.cli.{tool} import main; main(sys.argv[1:])"
    script = python(code, "--print-completion", shell)
    assert sign in script
    assert "json" in script


def test_bash_completes_options_and_formats(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(
        python(
            "import sys; from appliance.cli.pvxget import main; main(sys.argv[1:])",
            "--print-completion",
            "bash",
        )
    )
    code = f"""
        source {script}
        COMP_WORDS=(pvxget --js); COMP_CWORD=1; _shtab_pvxget; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(pvxget -F ""); COMP_CWORD=2; _shtab_pvxget; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines() == ["--json", "delta tree nt"], done.stderr


def test_every_tool_tells_its_version() -> None:
    from appliance import __version__

    for tool in (*TOOLS, "main"):
        out = python(f"import sys; from appliance.cli.{tool} import main; main(sys.argv[1:])", "-V")
        assert out.startswith(f"Secure PVAccess appliance {__version__}\nPython 3.")


def test_every_entry_point_can_be_called() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {*TOOLS, "appliance", "acf-test", "jwt-issuer", "pvacms"} <= scripts.keys()
    for script in scripts.values():
        module, _, function = script.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), script
