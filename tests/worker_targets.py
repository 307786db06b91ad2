"""Functions that `KillableWorker` runs in its process: they behave as badly as a grader could."""

import ctypes
import os
import sys
import time


def load():
    """The function that is called: the first argument says which of those below."""
    return lambda name, *args: globals()[name](*args)


def load_nothing():
    raise OSError("no such file")


def echo(value):
    return value


def process_id():
    return os.getpid()


def sleep(seconds):
    time.sleep(seconds)


def compute_one_huge_number():
    """One operation in C code, between two bytecodes."""
    return len(str(pow(7, 10**9)))


def crash():
    ctypes.string_at(0)


def recurse():
    return recurse() + 1


def allocate(gigabytes):
    return len(bytearray(int(gigabytes * 1024**3)))


def swallow():
    while True:
        try:
            time.sleep(10)
        except BaseException:
            pass


def print_something():
    print("this is no answer")
    sys.stdout.flush()
    return "answer"
