"""The peers' side of the protocol of ``tests.helpers.peers``; imports nothing of the package under test."""

import json
import os
import sys
import threading

_lock = threading.Lock()

# Standard output is for the protocol alone: what a library prints there goes where its log goes.
_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def say(**document):
    with _lock:
        _answers.write(json.dumps(document) + "\n")
        _answers.flush()


def serve(commands, ready=True):
    """Answer requests until standard input ends; then leave without waiting for threads of a library."""
    say(ready=ready)
    for line in sys.stdin:
        request = json.loads(line)
        number = request.pop("id")
        try:
            result = commands[request.pop("op")](**request)
            say(id=number, result=result)
        except Exception as error:
            say(id=number, error=f"{type(error).__name__}: {error}")
    os._exit(0)
