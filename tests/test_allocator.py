"""Freed memory stays with the process that asked for it, and with no other."""

import ctypes
import os
import subprocess
import sys

import pytest

from zspag.process import allocator

PROGRAM = """
import resource
from zspag.process import allocator
if {keep}:
    assert allocator.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()  # the first block is asked for
print(faults())
"""


def faults(*, keep):
    """Pages that the system hands out for five blocks of 64 MB, one after the other, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    around = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}  # dask sets some
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=around).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the settings are those of glibc")
def test_a_process_that_keeps_its_memory_asks_for_it_once():
    assert faults(keep=True) < 100 < faults(keep=False)  # importing the package alone changes nothing


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_happens(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not allocator.keep_freed_memory()


def test_a_c_library_without_the_settings_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not allocator.keep_freed_memory()
