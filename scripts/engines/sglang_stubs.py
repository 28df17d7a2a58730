"""Stands in for packages that SGLang imports everywhere and needs on GPUs only.

`sgl_kernel` has no build for CPUs without AMX, where SGLang falls back to PyTorch's own operators,
and `torchvision` is for pictures. Any module, class or constant of theirs can be imported; nothing
can be called.
"""

import importlib.abc
import importlib.machinery
import sys
import types

PACKAGES = ("sgl_kernel", "torchvision")


class _Constants(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Absent(metaclass=_Constants):
    def __init__(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} is a stub: there is no GPU here")


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Constants(name, (_Absent,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in PACKAGES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = _Module(spec.name)
        module.__version__ = "0.0.0"
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(_Finder())
