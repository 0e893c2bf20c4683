"""Check that optional libraries are installed, and name the extra that installs them."""

from importlib.util import find_spec


def require_extra(extra: str, libraries: tuple[str, ...]) -> None:
    """Raise an ImportError if a library of an extra is not installed."""
    for library in libraries:
        if find_spec(library) is None:
            raise ImportError(f'{library} is not installed. Install it with: pip install "scratch_gpt[{extra}]"')
