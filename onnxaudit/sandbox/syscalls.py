"""The system calls that running a model does not need, as a program for the kernel's seccomp filter (linux/filter.h)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

_ARCHITECTURES: Mapping[str, tuple[int, int]] = MappingProxyType({"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)})
"""AUDIT_ARCH of asm/audit.h, and the column of the table below."""
_REFUSED: Mapping[str, tuple[int | None, int | None]] = MappingProxyType(
    {
        # the network
        "socket": (41, 198),
        # other programs and processes
        "fork": (57, None),
        "vfork": (58, None),
        "execve": (59, 221),
        "execveat": (322, 281),
        "kill": (62, 129),
        "tkill": (200, 130),
        "rt_sigqueueinfo": (129, 138),
        "rt_tgsigqueueinfo": (297, 240),
        "pidfd_open": (434, 434),
        "pidfd_send_signal": (424, 424),
        "pidfd_getfd": (438, 438),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        # owners, permissions, times and attributes of files, of which Landlock knows nothing, and lengths, which came to it late
        "chmod": (90, None),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "fchmodat2": (452, 452),
        "chown": (92, None),
        "fchown": (93, 55),
        "lchown": (94, None),
        "fchownat": (260, 54),
        "utime": (132, None),
        "utimes": (235, None),
        "futimesat": (261, None),
        "utimensat": (280, 88),
        "setxattr": (188, 5),
        "lsetxattr": (189, 6),
        "fsetxattr": (190, 7),
        "setxattrat": (463, 463),
        "removexattr": (197, 14),
        "lremovexattr": (198, 15),
        "fremovexattr": (199, 16),
        "removexattrat": (466, 466),
        "file_setattr": (469, 469),
        "truncate": (76, 45),
        # how others are scheduled, and what is shared with them under numbers or names that are no files
        "setpriority": (141, 140),
        "ioprio_set": (251, 30),
        "shmget": (29, 194),
        "shmctl": (31, 195),
        "shmat": (30, 196),
        "semget": (64, 190),
        "semctl": (66, 191),
        "semop": (65, 193),
        "semtimedop": (220, 192),
        "msgget": (68, 186),
        "msgctl": (71, 187),
        "msgrcv": (70, 188),
        "msgsnd": (69, 189),
        "mq_open": (240, 180),
        "mq_unlink": (241, 181),
        # ways round this filter, and parts of the kernel that are often attacked
        "io_uring_setup": (425, 425),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "unshare": (272, 97),
        "setns": (308, 268),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "open_by_handle_at": (304, 265),
        "kexec_load": (246, 104),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
    }
)
_OF_A_PROCESS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "prlimit64": (302, 261),
        "sched_setparam": (142, 118),
        "sched_setscheduler": (144, 119),
        "sched_setattr": (314, 274),
        "sched_setaffinity": (203, 122),
        "migrate_pages": (256, 238),
        "move_pages": (279, 239),
    }
)
"""Calls whose first argument is the process that they are about: 0 is the caller, and the only one allowed besides its number."""
_FCNTL, _F_SETOWN, _F_SETOWN_EX = (72, 25), 8, 15
_CLONE, _CLONE3, _TGKILL = (56, 220), (435, 435), (234, 131)
_CLONE_THREAD = 0x10000
_X32 = 0x40000000  # the same calls once more, under other numbers
_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # places in struct seccomp_data, little-endian


def filter_program(machine: str, process: int) -> bytes:
    """The filter for a processor: refused calls fail with EPERM; threads may be started, processes not.

    process: the only one that signals may be sent to, and whose limits and scheduling may be changed. Raises ValueError for a
    processor whose numbers are not known here.
    """
    if machine not in _ARCHITECTURES:
        raise ValueError(f"no numbers of system calls for {machine}")
    architecture, column = _ARCHITECTURES[machine]
    refuse = _step(_RETURN, _ERRNO | _EPERM)
    steps = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, _NUMBER)]
    if machine == "x86_64":
        steps += [_step(_AT_LEAST, _X32, 0, 1), refuse]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            steps += [_step(_EQUAL, number, 0, 1), refuse]
    # glibc falls back to clone, whose flags can be looked at, where clone3 is not there
    steps += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _ERRNO | _ENOSYS)]
    steps += [_step(_EQUAL, _CLONE[column], 0, 3), _step(_LOAD, _FIRST_ARGUMENT), _step(_ANY_BIT, _CLONE_THREAD, 1, 0), refuse]
    steps += [_step(_LOAD, _NUMBER)]
    steps += [_step(_EQUAL, _TGKILL[column], 0, 3), _step(_LOAD, _FIRST_ARGUMENT), _step(_EQUAL, process, 1, 0), refuse]
    return b"".join([*steps, *_about_others(column, process), _step(_RETURN, _ALLOW)])


def _about_others(column: int, process: int) -> list[bytes]:
    """Refuse calls by what they are told: to change another process, or to send it signals when something can be read.

    They begin with the number loaded, or with an argument that is compared no more. The kernel, too, takes 32 bits of each.
    """
    refuse, allow = _step(_RETURN, _ERRNO | _EPERM), _step(_RETURN, _ALLOW)
    steps = [_step(_LOAD, _NUMBER)]
    for numbers in _OF_A_PROCESS.values():
        own = [_step(_LOAD, _FIRST_ARGUMENT), _step(_EQUAL, 0, 2, 0), _step(_EQUAL, process, 1, 0), refuse, allow]
        steps += [_step(_EQUAL, numbers[column], 0, len(own)), *own]
    told = [_step(_LOAD, _SECOND_ARGUMENT), _step(_EQUAL, _F_SETOWN, 1, 0), _step(_EQUAL, _F_SETOWN_EX, 0, 1), refuse]
    return [*steps, _step(_EQUAL, _FCNTL[column], 0, len(told)), *told]


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_so, if_not, value)
