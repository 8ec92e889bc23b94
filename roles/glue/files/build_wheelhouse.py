#!/usr/bin/env python3
"""Build, on the control node, all wheels that one kind of target needs, and pack them as one archive in the cache.

They are the package and its requirements; or, for a handler's environment, the package alone and the handler's packages
with all that these require.

The archive's name is the digest of everything that goes into it: a second run finds it and does nothing.
Writes one JSON document to stdout: release, archive, built.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

#: manylinux tags name the oldest glibc 2.N that a wheel runs on; pip knows none older than 2.5.
OLDEST_GLIBC_MINOR = 5
#: The names that these tags had before they named the version.
OLD_TAGS = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
#: Archives that stay in one cache, about 20 MB each: a way back, and targets of several kinds.
KEPT = 6


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="the folder of pyproject.toml and requirements.txt")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--python", required=True, help="the target's version, such as 3.13")
    parser.add_argument("--arch", required=True, help="the target's machine, such as x86_64")
    parser.add_argument("--glibc", required=True, help="the target's glibc, such as 2.41")
    parser.add_argument("--packages", nargs="*", help="pip requirements of a handler's environment, perhaps none")
    return parser.parse_args()


def _digest(options: argparse.Namespace, paths: list[Path]) -> str:
    summary = hashlib.sha256(f"{options.python} {options.arch} {options.glibc} {options.packages}\n".encode())
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        summary.update(f"{path.relative_to(options.source)} {content}\n".encode())
    return summary.hexdigest()[:16]


def _platform_options(arch: str, glibc: str) -> list[str]:
    """Name every wheel tag that the target's glibc can run, newest first."""
    minors = range(int(glibc.split(".")[1]), OLDEST_GLIBC_MINOR - 1, -1)
    tags = [f"manylinux_2_{minor}_{arch}" for minor in minors]
    tags += [f"{name}_{arch}" for minor, name in OLD_TAGS.items() if minor in minors]
    return [option for tag in [*tags, f"linux_{arch}"] for option in ("--platform", tag)]


def _pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, words)]
    # Only the document at the end belongs on stdout.
    subprocess.run(command, check=True, stdout=sys.stderr)


def _target(options: argparse.Namespace) -> list[str]:
    return ["--python-version", options.python, *_platform_options(options.arch, options.glibc)]


def _pinned(options: argparse.Namespace) -> list[Path]:
    return [options.source / "requirements.txt"] if options.packages is None else []


def _fetch_packages(options: argparse.Namespace, wheels: Path) -> None:
    wheels.mkdir()
    if options.packages:
        _pip("download", "--only-binary=:all:", *_target(options), "--dest", wheels, *options.packages)


def _fetch_requirements(options: argparse.Namespace, wheels: Path) -> None:
    # requirements.txt is the whole closure. Without --no-deps pip would take no source distribution for another Python.
    _pip("download", "--no-deps", *_target(options), "--dest", wheels, "--requirement", *_pinned(options))
    for package in sorted(path for path in wheels.iterdir() if path.suffix != ".whl"):
        _pip("wheel", "--no-deps", "--wheel-dir", wheels, package)
        package.unlink()


def _prove(options: argparse.Namespace, wheels: Path, folder: Path) -> None:
    # For the target: finds a wheel that was built for this machine instead, or a requirement that is not pinned.
    _pip(
        "install", "--dry-run", "--no-index", "--find-links", wheels, "--only-binary=:all:", *_target(options),
        "--target", folder / "none", "slowjobs",
    )  # fmt: skip


def _pack(options: argparse.Namespace, fetched: Path, folder: Path) -> Path:
    wheels = folder / "wheels"
    shutil.copytree(fetched, wheels)
    _pip("wheel", "--no-deps", "--wheel-dir", wheels, options.source)
    if options.packages is None:
        _prove(options, wheels, folder)
    archive = folder / "archive"
    with tarfile.open(archive, "w") as tar:
        for wheel in sorted(wheels.iterdir()):
            tar.add(wheel, arcname=wheel.name)
    return archive


def _build(options: argparse.Namespace, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=options.cache) as name:
        folder = Path(name)
        fetched = options.cache / f"requirements-{_digest(options, _pinned(options))}"
        if not fetched.exists():
            fetch = _fetch_requirements if options.packages is None else _fetch_packages
            fetch(options, folder / "requirements")
            (folder / "requirements").rename(fetched)
        _pack(options, fetched, folder).replace(archive)
    for old in sorted(options.cache.glob("*.tar"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink()


def _main() -> None:
    options = _arguments()
    options.source = options.source.resolve()
    options.cache.mkdir(parents=True, exist_ok=True)
    modules = sorted(path for path in (options.source / "src").rglob("*") if path.is_file())
    made_of = [options.source / "pyproject.toml", *_pinned(options)]
    made_of += [path for path in modules if "__pycache__" not in path.parts]
    release = _digest(options, made_of)
    archive = options.cache / f"{release}.tar"
    # Two runs at once build one archive.
    with (options.cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = not archive.exists()
        if built:
            try:
                _build(options, archive)
            except subprocess.CalledProcessError:
                sys.exit("the wheelhouse could not be built: pip said above why")
    sys.stdout.write(json.dumps({"release": release, "archive": str(archive), "built": built}) + "\n")


if __name__ == "__main__":
    _main()
