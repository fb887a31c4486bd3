"""Build one archive with every wheel that a host needs, on the machine that runs Ansible.

Hosts of a control network reach no package index, so they install from this archive alone. An archive is built again
only when the project's source or its dependencies have changed; what was downloaded before is used again.

Prints one line of JSON: version, digest (of what it was built from), archive, changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

PLATFORMS = {
    "x86_64": ("manylinux_2_36", "manylinux_2_35", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27",
               "manylinux_2_24", "manylinux_2_17", "manylinux2014"),
    "aarch64": ("manylinux_2_36", "manylinux_2_35", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27",
                "manylinux_2_24", "manylinux_2_17", "manylinux2014"),
}  # fmt: skip


def sources(project: Path) -> list[Path]:
    """Every file that goes into the project's own wheel, in a fixed order."""
    package = [
        path
        for path in (project / "appliance").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return sorted([project / "pyproject.toml", *package])


def version_of(project: Path) -> str:
    """Return the version of the project, which is what an installed release says of itself."""
    place = project / "appliance/version.py"
    found = re.search(r'(?m)^__version__ = "([0-9][0-9A-Za-z.+]*)"$', place.read_text())
    if found is None:
        sys.exit(f'wheelhouse: {place} has no line __version__ = "..." with a version')
    return found[1]


def digest_of(project: Path, extras: str, target: str) -> str:
    """Return what the archive depends on: source, extras and the hosts' Python and machine."""
    total = hashlib.sha256(f"{extras}\0{target}\0".encode())
    for path in sources(project):
        total.update(f"{path.relative_to(project).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def pip(*arguments: str) -> None:
    """Run pip; its output is shown only when it fails."""
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - own arguments
    if done.returncode:
        sys.exit(f"wheelhouse: {' '.join(command[2:5])} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def newest(folder: Path, pattern: str) -> Path:
    """Return the wheel that was built last."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def main() -> int:
    """Build what is missing; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", type=Path, required=True, help="root of the project's source")
    parser.add_argument("--output", type=Path, required=True, help="directory of the archives")
    parser.add_argument("--extras", default="all", help="optional dependencies, separated by commas")
    parser.add_argument("--python", default="3.11", help="Python version of the hosts")
    parser.add_argument(
        "--machine", default="x86_64", choices=sorted(PLATFORMS), help="machine type of the hosts"
    )
    parser.add_argument("--look", action="store_true", help="build nothing: only tell what would be")
    options = parser.parse_args()
    project = options.project.resolve()
    meta = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    version, target = version_of(project), f"cp{options.python.replace('.', '')}-{options.machine}"
    digest = digest_of(project, options.extras, target)
    archive = options.output.resolve() / f"{meta['name']}-{version}-{target}-{digest[:12]}.tar"
    changed = not archive.exists()
    if changed and not options.look:
        build(project, archive, options, meta["dependencies"] + extras_of(meta, options.extras))
    print(json.dumps({"version": version, "digest": digest, "archive": str(archive), "changed": changed}))
    return 0


def extras_of(meta: dict, extras: str) -> list[str]:
    """Return the requirements of some extras, those that name other extras of the project resolved."""
    found = []
    for extra in filter(None, extras.split(",")):
        for requirement in meta["optional-dependencies"][extra]:
            own = requirement.startswith(f"{meta['name']}[")
            found += extras_of(meta, requirement[len(meta["name"]) + 1 : -1]) if own else [requirement]
    return list(dict.fromkeys(found))


def build(project: Path, archive: Path, options: argparse.Namespace, requirements: list[str]) -> None:
    """Put the project's wheel and those of its dependencies into ``archive``, in one step."""
    target = "-".join(archive.stem.split("-")[-3:-1])
    wanted = hashlib.sha256("\n".join([target, *sorted(requirements)]).encode()).hexdigest()[:12]
    cache = archive.parent / f"dependencies-{wanted}"
    own = archive.parent / f"own-{archive.stem[-12:]}"
    own.mkdir(parents=True, exist_ok=True)
    # The time stamps in a wheel are the source's business, not this run's.
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")
    with tempfile.TemporaryDirectory() as clean:
        # Not in the work tree: what an earlier build left there would get into the wheel.
        for path in [*sources(project), project / "README.md", project / "LICENSE"]:
            copy = Path(clean) / path.relative_to(project)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(own), clean)
    if not (cache / ".complete").exists():
        cache.mkdir(exist_ok=True)
        platforms = [f"--platform={name}_{options.machine}" for name in PLATFORMS[options.machine]]
        pip(
            "download", "--quiet", "--only-binary=:all:", "--implementation=cp",
            f"--python-version={options.python}", *platforms, "--dest", str(cache), *requirements,
        )  # fmt: skip
        (cache / ".complete").touch()
    temporary = archive.with_suffix(".new")
    with tarfile.open(temporary, "w") as tar:
        for wheel in sorted([newest(own, "*.whl"), *cache.glob("*.whl")], key=lambda path: path.name):
            tar.add(wheel, arcname=wheel.name, filter=plain)
    temporary.rename(archive)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove owner, mode and time from a member, so that the same wheels give the same archive everywhere."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = "root"
    member.mode = 0o644
    return member


if __name__ == "__main__":
    sys.exit(main())
