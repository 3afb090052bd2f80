"""Makes what the tests marked ``peers`` need, or the named parts of it: ``python -m tests.peers [NAME…]``."""

from __future__ import annotations

import shutil
import sys

from tests.peers import environments, schemas

ALL = (*environments.PINS, environments.NGINX, schemas.NAME)


def make(names: list[str]) -> int:
    """Make these, all where none is named. Returns 1, after a last line that says what is missing and why, if anything is."""
    missing = []
    for name in names or ALL:
        print(f"{name} ...", flush=True)
        if name == schemas.NAME and shutil.which("npm") is None:
            print("  left out, and its tests with it: there is no npm to fetch it with")
            continue
        try:
            _make(name)
        except environments.CannotInstallError as error:
            missing.append(str(error))
    if missing:
        print(f"No test was run, since this cannot be had: {'; '.join(missing)}", file=sys.stderr)
    return int(bool(missing))


def _make(name: str) -> None:
    if name == environments.NGINX:
        environments.nginx()
    elif name == schemas.NAME:
        schemas.schemas()
    else:
        environments.installed(name)


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(ALL)
    if unknown:
        sys.exit(f"No such part: {', '.join(sorted(unknown))}. There are {', '.join(ALL)}.")
    try:
        sys.exit(make(sys.argv[1:]))
    except KeyboardInterrupt:
        print("Interrupted. What is not finished is made again by the next `make peers`.", file=sys.stderr)
        sys.exit(130)
