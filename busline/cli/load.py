"""From `pkg.module:bus` to the Bus, or to one line that says why not."""

from __future__ import annotations

import os
import re
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.errors import ConfigurationError
from busline.router import Router

_APP = re.compile(r"([\w.]+):([\w.]+)", re.ASCII)


def load_bus(app: str) -> Bus:
    """Import the module, from the current folder too, and return its bus. Raises Failure."""
    match = _APP.fullmatch(app)
    if match is None:
        raise Failure(Exit.USAGE, f"{app!r} names no bus; write module:name, for example orders.app:bus")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    module = _import(match[1])
    found = _attribute(module, match[2])
    if isinstance(found, Bus):
        return found
    raise Failure(Exit.NO_APP, f"{app} is {_described(found)}, not a Bus{_buses(module)}")


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise Failure(Exit.NO_APP, _not_found(name, error)) from error
    except (Exception, SystemExit) as error:
        code = Exit.CONFIGURATION if isinstance(error, ConfigurationError) else Exit.NO_APP
        text = f"importing {name!r} raised {type(error).__name__}: {error}{_place(error)}"
        raise Failure(code, text) from error


def _not_found(name: str, error: ModuleNotFoundError) -> str:
    missing = error.name or ""
    if missing == name or name.startswith(missing + "."):
        return f"there is no module {missing!r} in {os.getcwd()} or on Python's path; run this where it can be imported"
    return f"{name!r} imports {missing!r}, which is not there{_place(error)}; install it, or correct the import"


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, import_module.__code__.co_filename)


def _attribute(module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise Failure(Exit.NO_APP, f"{module.__name__!r} has no {path!r}{_suggestion(module, path)}")
        found = getattr(found, name)
    return found


def _suggestion(module: ModuleType, path: str) -> str:
    if listed := _buses(module):
        return listed
    near = get_close_matches(path, vars(module), n=1)
    return f"; did you mean {near[0]!r}?" if near else "; it has no Bus at all"


def _buses(module: ModuleType) -> str:
    names = [f"{module.__name__}:{name}" for name, value in vars(module).items() if isinstance(value, Bus)]
    return f"; a Bus is {' and '.join(names)}" if names else ""


def _described(found: object) -> str:
    if isinstance(found, Router):
        return "a Router, to be included in a bus"
    if isinstance(found, type):
        return f"the class {found.__name__}"
    return f"a {type(found).__name__}"
