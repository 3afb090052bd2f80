"""Giving up rights in the process that is to run a suspect: standard library only, before any thread is started.

Each step is tried, and said to be applied only where the kernel took it and, as far as that can be seen from inside, it holds.
Numbers are those of Linux' user-space interface (linux/landlock.h, linux/seccomp.h, asm/unistd.h).
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxaudit.sandbox.limits import Limits
from onnxaudit.sandbox.syscalls import filter_program

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LANDLOCK = (444, 445, 446)  # create_ruleset, add_rule, restrict_self: the same number on every processor
_READ_FILE, _READ_DIR, _WRITE_FILE, _IOCTL = 1 << 2, 1 << 3, 1 << 1, 1 << 15
_SIGKILL = 9
_GRACE = 5
"""Seconds of CPU time between the signal that says why and the one that cannot be caught."""


def confine(limits: Limits, readable: Sequence[str], devices: Sequence[str]) -> tuple[list[str], list[str]]:
    """Confine this process and all it will start. What was applied, and what could not be, in words.

    readable: files and folders that stay readable; devices: those that stay writable too. It cannot be undone.
    """
    applied: list[str] = []
    lacking: list[str] = []

    def attempt(words: str, step: Callable[[], str | None]) -> bool:
        try:
            said = step()
        except (OSError, ValueError, AttributeError, ImportError):
            lacking.append(words)
            return False
        applied.append(said or words)
        return True

    linux = sys.platform == "linux"
    attempt(f"memory {limits.memory} GiB", lambda: _limit_memory(limits, linux))
    attempt(f"CPU time {limits.cpu} s", lambda: _limit("RLIMIT_CPU", limits.cpu, limits.cpu + _GRACE))
    attempt("no core dumps", lambda: _limit("RLIMIT_CORE", 0, 0))
    attempt("no writing to files", lambda: _limit("RLIMIT_FSIZE", 0, 0))
    if not linux:
        lacking.extend(["no network", "no new processes", "files outside the suspect unreadable"])
        return applied, lacking
    user = os.getuid()
    # namespaces first: a filter or a rule may forbid them
    network = [words for words, step in (("namespace", _leave_network),) if _done(step)]
    if network and user:  # of the system's first user the kernel counts no processes
        attempt("at most 4096 threads", lambda: _limit("RLIMIT_NPROC", 4096, 4096))
    attempt("no new privileges", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1))
    attempt("no capabilities", _drop_capabilities)
    _done(lambda: _prctl(_PR_SET_PDEATHSIG, _SIGKILL))
    landlock = _done(lambda: _landlock(readable, devices))
    filtered = _done(_filter_calls)
    network += ["seccomp"] if filtered and not _can_open_socket() else []
    (applied if network else lacking).append(f"no network ({', '.join(network)})" if network else "no network")
    (applied if filtered and not _can_fork() else lacking).append("no new processes")
    (applied if landlock else lacking).append("files outside the suspect unreadable")
    return applied, lacking


def _done(step: Callable[[], object]) -> bool:
    try:
        step()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _limit(name: str, soft: int, hard: int) -> None:
    import resource

    number = getattr(resource, name)
    known = resource.getrlimit(number)[1]
    if known != resource.RLIM_INFINITY:  # never raise what was set outside
        soft, hard = min(soft, known), min(hard, known)
    resource.setrlimit(number, (soft, hard))


def _limit_memory(limits: Limits, linux: bool) -> str:
    """RLIMIT_DATA counts what is written to, where RLIMIT_AS also counts libraries and what CUDA merely reserves."""
    if not linux:
        raise OSError("other kernels take the number and do not heed it")
    _limit("RLIMIT_DATA", limits.bytes, limits.bytes)
    return f"memory {limits.memory} GiB"


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(option: int, value: int, address: Any = 0) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc().prctl(option, ctypes.c_ulong(value), address or zero, zero, zero))


def _leave_network() -> None:
    """Into a network namespace with nothing in it, and the user namespace that an ordinary user needs for that."""
    user, group = os.getuid(), os.getgid()
    _checked(_libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        try:
            descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)  # a plain write: the limit on file sizes leaves it alone
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError:  # then this process is called "nobody" inside, and has the same rights
            pass


def _drop_capabilities() -> None:
    """Those that root has, and those that whoever makes a user namespace gets in it (linux/capability.h, version 3)."""
    header, none = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)
    _checked(_libc().capset(header, none))


def landlock_abi() -> int:
    """The version of the kernel's Landlock, 0 where there is none, or it is switched off."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(_LANDLOCK[0], None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def _landlock(readable: Sequence[str], devices: Sequence[str]) -> None:
    """Let nothing be read but ``readable``, and nothing written but ``devices``."""
    call = _libc().syscall
    abi = _checked(call(_LANDLOCK[0], None, ctypes.c_size_t(0), ctypes.c_uint(1)))
    handled = (1 << (13 + min(abi - 1, 2))) - 1 if abi < 5 else (1 << 16) - 1
    network, scoped = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)  # TCP; abstract sockets and signals
    attributes = struct.pack("QQQ", handled, network, scoped)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    rules = _checked(call(_LANDLOCK[0], attributes, ctypes.c_size_t(size), ctypes.c_uint(0)))
    try:
        for paths, rights in ((readable, _READ_FILE | _READ_DIR), (devices, _READ_FILE | _WRITE_FILE | _IOCTL)):
            for path in paths:
                _allow(call, rules, path, rights & handled)
        _checked(call(_LANDLOCK[2], ctypes.c_int(rules), ctypes.c_uint(0)))
    finally:
        os.close(rules)


def _allow(call: Any, rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
    except OSError:  # what is not there need not be readable
        return
    try:
        known = rights if Path(path).is_dir() else rights & ~_READ_DIR
        rule = struct.pack("=Qi", known, descriptor)
        _checked(call(_LANDLOCK[1], ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint(0)))
    finally:
        os.close(descriptor)


def _filter_calls() -> None:
    program = filter_program(platform.machine(), os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    described = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(described))


def _can_open_socket() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _can_fork() -> bool:
    try:
        child = os.fork()
    except OSError:
        return False
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return True
