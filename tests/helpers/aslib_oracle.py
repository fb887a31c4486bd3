"""EPICS Base's own access security, asked through ctypes in a process of its own.

asLib keeps its state in globals, so nothing else in a test process may share it. Run as a program it answers
one JSON line per JSON line; :class:`AsLib` is the other end of that pipe.
"""

import ctypes
import json
import subprocess
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_ulong, c_void_p
from pathlib import Path


class _Node(Structure):
    _fields_ = [("next", c_void_p), ("previous", c_void_p)]


class _List(Structure):
    _fields_ = [("node", _Node), ("count", c_int)]


class _Asg(Structure):
    _fields_ = [
        ("node", _Node), ("name", c_char_p), ("inputs", _List), ("rules", _List), ("members", _List),
        ("values", POINTER(c_double)), ("bad", c_ulong), ("changed", c_ulong),
    ]  # fmt: skip


class _Member(Structure):
    _fields_ = [
        ("node", _Node),
        ("asg", POINTER(_Asg)),
        ("clients", _List),
        ("name", c_char_p),
        ("user", c_void_p),
    ]


class _Client(Structure):
    _fields_ = [
        ("node", _Node), ("member", POINTER(_Member)), ("user", c_char_p), ("host", c_char_p), ("private", c_void_p),
        ("callback", c_void_p), ("level", c_int), ("access", c_int), ("trap", c_int),
    ]  # fmt: skip


def _serve():
    import epicscorelibs.path

    com = ctypes.CDLL(epicscorelibs.path.get_lib("Com"))
    com.eltc(0)
    c_int.in_dll(com, "asCheckClientIP").value = 0
    for line in sys.stdin:
        query = json.loads(line)
        if com.asInitMem(query["acf"].encode(), None):
            print("null", flush=True)
            continue
        answers = []
        for asg, asl, user, host, inputs in query["questions"]:
            member = POINTER(_Member)()
            asg_name = asg.encode()
            com.asAddMember(byref(member), asg_name)
            client = POINTER(_Client)()
            user_name = user.encode()
            host_name = ctypes.create_string_buffer(host.encode())
            com.asAddClient(byref(client), member, asl, user_name, host_name)
            group = member.contents.asg
            for letter, value in inputs.items():
                bit = 1 << (ord(letter) - ord("A"))
                group.contents.changed |= bit
                if value is None:
                    group.contents.bad |= bit
                else:
                    group.contents.bad &= ~bit
                    group.contents.values[ord(letter) - ord("A")] = value
            com.asComputeAsg(group)
            answers.append([client.contents.access, client.contents.trap])
            com.asRemoveClient(byref(client))
            com.asRemoveMember(byref(member))
        print(json.dumps(answers), flush=True)


class AsLib:
    """A running oracle; use as a context manager."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def ask(self, acf, questions=()):
        """``[(access 0..2, trapwrite), ...]`` for ``(asg, asl, user, host, inputs)``; None: Base refuses the file."""
        self.process.stdin.write(json.dumps({"acf": acf, "questions": list(questions)}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


if __name__ == "__main__":
    _serve()
