"""Put on PYTHONPATH, this shows acq_isl a poorer system: no POSIX-only calls, signals or modules, not Linux.

Only acq_isl's own modules see it, in this process and in those it starts; libraries know where they are. The
platform is "darwin", since what it does instead of Linux' calls runs here; Windows' own cannot.
"""

import builtins
import os
import signal
import sys
import types

GONE = {
    "os": {
        "fork", "forkpty", "geteuid", "getuid", "getpgid", "getpgrp", "killpg", "memfd_create", "mkfifo",
        "sched_getaffinity", "setsid", "setpgid", "chown", "posix_fadvise", "posix_fallocate",
        "MFD_CLOEXEC", "MFD_ALLOW_SEALING",
    },
    "signal": {"SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGWINCH", "SIGTSTP", "pthread_kill",
               "setitimer", "sigwait", "pthread_sigmask"},
}  # fmt: skip
NO_MODULES = {"fcntl", "resource", "termios", "pwd", "grp", "pty", "tty"}
OTHER = {"sys": {"platform": "darwin"}}


class _Poorer(types.ModuleType):
    def __init__(self, module, gone, other):
        super().__init__(module.__name__)
        self.__dict__.update(other, _module=module, _gone=gone)

    def __getattr__(self, name):
        if name in self._gone:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)

    def __setattr__(self, name, value):
        setattr(self._module, name, value)


_POORER = {
    module.__name__: _Poorer(module, GONE.get(module.__name__, set()), OTHER.get(module.__name__, {}))
    for module in (os, signal, sys)
}
_import = builtins.__import__


def _import_poorer(name, globals=None, locals=None, fromlist=(), level=0):
    if level or (globals or {}).get("__name__", "").partition(".")[0] != "acq_isl":
        return _import(name, globals, locals, fromlist, level)
    if name in NO_MODULES:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _POORER.get(name) or _import(name, globals, locals, fromlist, level)


builtins.__import__ = _import_poorer
