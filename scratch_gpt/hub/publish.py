"""Publish a run folder in a repository on the Hub, keeping edits made on its card by hand.

The same call resumes an interrupted upload: files that have arrived are not sent again.
"""

import glob
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from huggingface_hub import HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http, validate_repo_id

from ..runs.record import PUBLISHED
from ..utils.files import write_text
from ..utils.locks import hold
from .card import is_ours, merge_cards
from .layouts import AUTO, layout_of
from .licenses import check_license
from .staging import check_leaks, checkpoint_steps, files_of, fingerprint_of, is_allowed, stage


class Push(NamedTuple):
    """The result of a push."""

    url: str
    commit: str
    has_changed: bool


CARD_FILE = "README.md"
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds that a request waits; the client's default has no limit
LOG_IN = "Log in with `hf auth login` (or set HF_TOKEN), with a token that may write: huggingface.co/settings/tokens."


def check_repo_name(repo: str) -> None:
    """Raise a ValueError if `repo` is not user/name."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{error} A repository id looks like user/name.") from error
    if repo.count("/") != 1:
        raise ValueError(f"{repo!r} is not a repository id. Write user/name.")


def check_access(repo: str) -> None:
    """Raise a ValueError in one line if the token cannot publish to `repo`."""
    check_repo_name(repo)
    if get_token() is None:
        raise ValueError(f"No token for the Hub was found. {LOG_IN}")
    with clear_errors(repo):
        user = HfApi().whoami()
        owner, token = repo.split("/")[0], user.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise ValueError(f"The token for the Hub may read, not write. {LOG_IN}")
        names = [user["name"], *(org["name"] for org in user.get("orgs", []))]
        if owner not in names:
            raise ValueError(f"{repo}: the token is {user['name']}'s, which may write under {', '.join(names)}.")
        scopes = token.get("fineGrained", {}).get("scoped")
        if scopes is not None and not any(
            "repo.write" in scope["permissions"] and scope["entity"].get("name") in (owner, repo) for scope in scopes
        ):
            raise ValueError(f"The token for the Hub has no write scope for {owner}. {LOG_IN}")


def publish(
    folder: str | Path,
    repo: str,
    *,
    layout: str = AUTO,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    step: int | None = None,
    say: Callable[[str], None] = print,
) -> Push:
    """Stage a run (staging.stage) and push it to `repo`, which is created if it does not exist.

    In an existing repository, text outside the marked regions of its card and files that are not ours stay. Nothing is
    committed if nothing has changed. `folder/hub.json` records the repository, the commit and the layout.

    Args:
        layout: as in staging.stage; "auto" keeps the layout of an existing repository.
        private: make the repository private; an existing public one raises an error.
        license, license_name, license_link: as in licenses.check_license.
        revision: a branch, created if it does not exist; None is main.
        step: publish this checkpoint's weights instead, by default on the branch step-N.
        say: is called with the lines of staging.stage.

    Raises:
        ValueError: one line with the problem and its remedy; nothing was committed.
    """
    check_license(license, license_name, license_link)
    check_access(repo)
    api, branch = HfApi(), revision or (None if step is None else f"step-{step}")
    lock = hold(folder, say) if Path(folder).is_dir() else nullcontext()  # until the staged folder is pushed
    with lock:
        with clear_errors(repo):
            published_layout = _published_layout(api, repo, branch)
        out = stage(
            folder,
            repo=repo,
            layout=layout,
            revision=branch,
            license=license,
            license_name=license_name,
            license_link=license_link,
            step=step,
            published_layout=published_layout,
            pin=partial(_pin, api),
            say=say,
        )
        with clear_errors(repo):
            api.create_repo(repo, private=private or None, exist_ok=True)
            if private and not api.model_info(repo).private:
                raise ValueError(
                    f"{repo} already exists and is public. Make it private on its settings page, or set private=False."
                )
            if branch is not None:
                api.create_branch(repo, branch=branch, exist_ok=True)
            _keep_hand_edits(api, repo, branch, out)
            old = [glob.escape(name) for name in api.list_repo_files(repo, revision=branch) if is_allowed(name)]
            before = api.model_info(repo, revision=branch).sha
            api.upload_folder(
                repo_id=repo,
                folder_path=out,
                revision=branch,
                commit_message="Publish with scratch_gpt",
                delete_patterns=old,
            )
            after = cast(str, api.model_info(repo, revision=branch).sha)
    if step is None:
        used_layout = layout_of(files_of(out), lambda name: (out / name).read_text(encoding="utf-8"))
        weights = None if used_layout == "adapter" else fingerprint_of(folder)
        note = {"repo": repo, "revision": branch, "commit": after, "layout": used_layout, "fingerprint": weights}
        write_text(Path(folder) / PUBLISHED, json.dumps(note, indent=2) + "\n")
    place = f"{constants.ENDPOINT}/{repo}" + (f"/tree/{branch}" if branch else "")
    return Push(place, after, before != after)


def publish_checkpoints(folder: str | Path, repo: str, **options: Any) -> list[Push]:
    """Publish each checkpoint of a run on a branch step-N, with the `options` of `publish`."""
    return [publish(folder, repo, step=step, **options) for step in checkpoint_steps(folder)]


def _published_layout(api: HfApi, repo: str, branch: str | None) -> str | None:
    # Return the layout of the files that a push replaces. A branch that does not exist yet starts as a copy of main.
    for revision in dict.fromkeys((branch, None)):
        try:
            names = api.list_repo_files(repo, revision=revision)
        except RevisionNotFoundError:
            continue
        except RepositoryNotFoundError:  # it will be created
            return None
        read = partial(_read, api, repo, revision)
        has_weights = any(name.endswith((".safetensors", ".bin")) for name in names)
        if CARD_FILE in names and has_weights and not is_ours(read(CARD_FILE)):
            raise ValueError(
                f"{repo} already exists: it holds a model with a card that is not ours. Give another repository, or "
                "delete that card first to replace the model."
            )
        return layout_of(names, read)
    return None


def _read(api: HfApi, repo: str, revision: str | None, name: str) -> str:
    content = Path(api.hf_hub_download(repo, name, revision=revision)).read_bytes()  # keeps the line endings
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} of {repo} is not UTF-8. Save it as UTF-8, or remove it from the repository."
        ) from error


def _pin(api: HfApi, base: str, revision: str | None) -> tuple[str, str | None]:
    # Return the commit of an adapter's base, and the layout of its files.
    try:
        with clear_errors(base, (RepositoryNotFoundError, RevisionNotFoundError)):
            commit = cast(str, api.model_info(base, revision=revision).sha)
            return commit, layout_of(api.list_repo_files(base, revision=commit), partial(_read, api, base, commit))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at {revision}" if revision else ""
        raise ValueError(
            f"The adapter's base {base}{at} is not on the Hub, so the adapter cannot be loaded."
        ) from error


def _keep_hand_edits(api: HfApi, repo: str, branch: str | None, out: Path) -> None:
    if CARD_FILE not in api.list_repo_files(repo, revision=branch):
        return
    card, old = out / CARD_FILE, _read(api, repo, branch, CARD_FILE)
    new = card.read_text(encoding="utf-8")
    card.write_bytes((merge_cards(old, new) if is_ours(old) else new).encode())
    check_leaks(out, repo)


@contextmanager
def clear_errors(repo: str, raised: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors of the client and the Hub into a one-line ValueError with a remedy, and limit the waiting time.

    Args:
        raised: errors that are passed on unchanged.
    """
    again = "Nothing is lost: run the same command again to continue."
    default_factory = _http._GLOBAL_CLIENT_FACTORY
    set_client_factory(partial(_impatient, default_factory))
    try:
        yield
    except raised:
        raise
    except LocalTokenNotFoundError as error:
        raise ValueError(f"No token for the Hub was found. {LOG_IN}") from error
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{constants.ENDPOINT} does not answer like a Hub. Perhaps this network requires you to log in first. "
            f"{again}"
        ) from error
    except (HFValidationError, ValueError) as error:
        if isinstance(error, HfHubHTTPError):  # a bad request
            raise ValueError(_explain(repo, error, again)) from error
        raise
    except OfflineModeIsEnabled as error:
        raise ValueError(f"The Hub is switched off here (HF_HUB_OFFLINE). Unset it to publish. {again}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{repo} does not exist, or this token may not see it. {LOG_IN}") from error
    except HfHubHTTPError as error:
        raise ValueError(_explain(repo, error, again)) from error
    except (
        HTTPError,
        LocalEntryNotFoundError,
    ) as error:  # the second type is raised for a file that could not be requested
        cause = type(error).__name__ + (f" after {READ_TIMEOUT} s" if "Timeout" in type(error).__name__ else "")
        raise ValueError(f"{constants.ENDPOINT} cannot be reached ({cause}). {again}") from error
    except RuntimeError as error:  # from a file's upload in a thread
        inside = error.__cause__
        if not isinstance(inside, (HTTPError, HfHubHTTPError, OSError)):
            raise
        raise ValueError(f"{' '.join(str(error).split())} ({_short(inside)}). {again}") from error
    except OSError as error:
        raise ValueError(f"{error.strerror or _short(error)}: {error.filename or 'a file'}. {again}") from error
    finally:
        set_client_factory(default_factory)


def _impatient(make_client: Callable[[], Any]) -> Any:
    # Return the client with a time limit for every request that sets none. A Hub may accept a request and never
    # answer, or tell the client to wait for an hour.
    client = make_client()

    def limit(request: Any) -> None:
        limits = {"connect": CONNECT_TIMEOUT, "read": READ_TIMEOUT, "write": READ_TIMEOUT, "pool": READ_TIMEOUT}
        own_limits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = limits | {name: x for name, x in own_limits.items() if x is not None}

    def refuse_long_waits(response: Any) -> None:
        if response.status_code == 429 and (wait := _wait_of(response.headers)) > READ_TIMEOUT:
            raise HfHubHTTPError(f"429 Too Many Requests: wait {wait:,} s", response=response)

    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], limit],
        "response": [*hooks["response"], refuse_long_waits],
    }
    return client


def _wait_of(headers: Any) -> int:
    # Retry-After: 3600, or RateLimit: "api";r=0;t=3600
    after, limits = headers.get("retry-after", ""), headers.get("ratelimit", "")
    match = re.fullmatch(r"\d{1,9}", after) or re.search(r"(?<=;t=)\d{1,9}", limits)
    return int(match[0]) if match else 0


def _explain(repo: str, error: HfHubHTTPError, again: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"The Hub does not know this token. {LOG_IN}"
    if status == 403:
        return f"This token may not write to {repo}. {LOG_IN}"
    if status == 429:
        return f"The Hub limits the number of requests ({_short(error)}). Wait some minutes. {again}"
    if status >= 500:
        return f"The Hub has an internal error ({_short(error)}). Wait some minutes. {again}"
    return f"The Hub has refused {repo} ({_short(error)}). {again}"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


__all__ = ["Push", "check_access", "check_repo_name", "publish", "publish_checkpoints"]
