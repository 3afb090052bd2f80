"""The confined process: gives up its rights, then opens the suspect and answers what it is asked, until its input ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from typing import IO, Any

from onnxaudit.sandbox.confine import confine
from onnxaudit.sandbox.limits import Limits


def main() -> None:
    """Run with the settings in the only argument, as JSON. Messages go over what were standard input and output."""
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # what a runtime prints must not get among the messages
        os.dup2(nowhere, standard)
    applied, lacking = confine(Limits(**settings["limits"]), settings["readable"], settings["devices"])
    # libraries look for a folder to write to as they are imported; there is none, and they need none
    tempfile.tempdir = os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.sep
    # only now is anything imported that starts threads: each thread has rights of its own
    from onnxaudit.sandbox.frames import write

    write(replies, {"applied": applied, "lacking": lacking})
    _serve(requests, replies)


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    from onnxaudit.registry import open_suspect
    from onnxaudit.sandbox.frames import read, write
    from onnxaudit.sandbox.telling import tell_card, tell_error
    from onnxaudit.suspect import InputSpec, Suspect, Target

    suspect: Suspect | None = None
    while True:
        try:
            head, arrays = read(requests)
        except EOFError:
            return
        try:
            if "open" in head:
                told = head["open"]
                suspect = open_suspect(Target(**{**_tuples(told), "spec": InputSpec(**_tuples(told["spec"]))}))
                write(replies, {"card": tell_card(suspect.card)})
            elif suspect is None:
                return
            elif "rewire" in head:
                suspect.rewire(InputSpec(**_tuples(head["rewire"])))
                write(replies, {})
            elif "inside" in head:
                seen = suspect.inside(head["inside"], arrays[0], **head["parameters"])
                write(replies, {"seen": seen is not None}, [] if seen is None else [seen])
            else:
                answers = suspect.ask(arrays[0])
                said = {"access": answers.access.word, "num_classes": answers.num_classes}
                write(replies, said, [answers.classes] + ([] if answers.scores is None else [answers.scores]))
        except Exception as error:  # foreign code can raise anything
            write(replies, tell_error(error))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


if __name__ == "__main__":
    main()
