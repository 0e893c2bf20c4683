"""Hide the scratch_gpt package from a process that imports this module, as if it were not installed."""

import importlib.util
import sys


class Without:
    """An import finder that finds everything except our package, whether it is installed or on the path."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args, **kwargs):
        return None if name.partition(".")[0] == "scratch_gpt" else self.finder.find_spec(name, *args, **kwargs)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
assert importlib.util.find_spec("scratch_gpt") is None
