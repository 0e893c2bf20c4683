"""Ask for optional libraries by the name of the extra that installs them."""

from importlib.util import find_spec


def require_extra(extra: str, libraries: tuple[str, ...]) -> None:
    for library in libraries:
        if find_spec(library) is None:
            raise ImportError(f'{library} is not installed; it is of an extra: pip install "scratch_gpt[{extra}]"')
