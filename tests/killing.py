"""Checks that are killed: a process that has all imported, and forks one child a line of JSON on stdin.

The child runs a check. At its n-th change of a file it writes half of what it was to write, or none of it, and is killed by
SIGKILL: no handler runs, no buffer is flushed. One line a child comes back: how it ended.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from onnxaudit.audit.checking import CheckOptions
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import check_judgeable, run_check
from onnxaudit.bundle import QueryBundle, load

CHANGES = ("write", "fsync", "link", "replace", "ftruncate", "unlink")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives this")


def arm(moment: int) -> None:
    """Die at so many changes of files from now."""
    left = [moment]

    def armed(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                if name == "write" and len(arguments[1]) > 1:
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                die()
            return real(*arguments, **options)

        return change

    for name in CHANGES:
        setattr(os, name, armed(name, getattr(os, name)))


@cache
def warm(path: str) -> QueryBundle:
    """The bundle, and all that a check imports when it needs it: done once, not in every child."""
    from onnxaudit.audit.judging.judging import judge
    from tests.bundles import Recorded

    bundle = load(Path(path))
    check_judgeable(bundle)
    judge(bundle, Recorded(bundle, bundle.answers["victim"]).card, bundle.answers["victim"], None).to_json()
    pkgutil.resolve_name("onnxaudit_adapters.http:open_http")
    return bundle


def child(order: dict[str, Any]) -> None:
    bundle = warm(order["bundle"])
    options = CheckOptions(evidence=Path(order["evidence"]), resume=True, repeat=4, budget=order.get("budget"))
    http = {"dialect": "v2", "timeout": 20.0, "concurrency": order["concurrency"], "batch": 14, "budget": order.get("budget")}
    http["headers"] = {"Authorization": order["run"]}  # whom the server counts
    if order["moment"]:
        arm(order["moment"])
    report = run_check(bundle, order["url"], None, options, {}, http, Silent(), 0.0)
    Path(order["report"]).write_text(report.to_json())


def main() -> None:
    for line in sys.stdin:
        warm(json.loads(line)["bundle"])
        pid = os.fork()
        if not pid:
            try:
                child(json.loads(line))
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
