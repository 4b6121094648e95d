"""Files of a Hugging Face Hub repository, within seconds or not at all."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from srgan.errors import WeightsError

#: Seconds that an unreachable or silent Hub may cost, and a slow one when `hurry` is set.
HUB_PATIENCE = 5.0
#: Seconds that a Hub which does answer may take for the files.
DOWNLOAD_PATIENCE = 600.0
#: `user/repo` or `user/repo@revision`, at a branch, tag or commit.
HUB_SPEC = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)

T = TypeVar("T")


class NotOnHubError(WeightsError):
    """The Hub has answered that there is no such repository."""


def fetch_files(
    repository: str,
    revision: str | None,
    first: str,
    rest: Callable[[Path], Sequence[str]],
    *,
    hurry: bool,
) -> tuple[Path, tuple[str, ...]]:
    """Fetches files into the Hub client's cache, or finds them there.

    A commit that is in the cache is taken without asking the Hub, a branch or tag only when the
    Hub can't be had; then there is a notice.

    Args:
        repository: `user/repo`.
        revision: branch, tag or commit; None for the main branch.
        first: a small file, which tells what the others are.
        rest: the names of the others, given the path of the first.
        hurry: leave a slow Hub after `HUB_PATIENCE`. What is on the way still gets into the cache,
            for the next start.

    Returns:
        The folder of the commit, whose name is the commit, and notices in whole sentences.

    Raises:
        NotOnHubError: the Hub knows no such repository, and the cache has none.
        WeightsError: neither the Hub nor the cache has the files.
    """
    # Here, because the import takes a quarter of a second and bundled weights don't need it.
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    def cached() -> Path | None:
        path = try_to_load_from_cache(repository, first, revision=revision)
        if not isinstance(path, str):
            return None
        folder = Path(path).parent
        return folder if all((folder / name).is_file() for name in rest(Path(path))) else None

    def download() -> Path:
        # By branch first, for then the cache notes which commit that is; the rest by this commit.
        path = Path(hf_hub_download(repository, first, revision=revision))
        for name in rest(path):
            hf_hub_download(repository, name, revision=path.parent.name)
        return path.parent

    start = time.monotonic()
    try:
        folder = cached()
        if folder is not None and folder.name == revision:
            return folder, ()
        # Asked beforehand, because a download tries for 24 seconds where the Hub refuses, and for
        # minutes where it is silent.
        url = hf_hub_url(repository, first, revision=revision)
        within(HUB_PATIENCE, lambda: get_hf_file_metadata(url))
        left = HUB_PATIENCE - (time.monotonic() - start) if hurry else DOWNLOAD_PATIENCE
        return within(left, download), ()
    except HFValidationError as exc:
        raise WeightsError(f"{repository} can't be the name of a Hub repository: {exc}") from exc
    except Exception as exc:  # the client's transport errors share no base class between releases
        reason = explain(exc, revision)
        folder = cached()
        if folder is None:
            error = NotOnHubError if isinstance(exc, RepositoryNotFoundError) else WeightsError
            raise error(f"{repository} can't be had from the Hub: {reason}.") from exc
        return folder, (f"{repository} is used as it was when last fetched: {reason}.",)


def forget_files(folder: Path, names: Sequence[str]) -> None:
    """Takes files out of the cache, so that they are fetched again the next time."""
    for name in names:
        for path in ((folder / name).resolve(), folder / name):  # the bytes, the link to them
            with contextlib.suppress(OSError):
                path.unlink()


def within(seconds: float, function: Callable[[], T]) -> T:
    """Calls the function in a thread that is abandoned after so many seconds.

    Raises:
        TimeoutError: it took longer; else whatever the function raises.
    """
    outcome: list = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except Exception as exc:
            outcome.append((None, exc))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if not outcome:
        raise TimeoutError(f"no answer within {max(0.0, seconds):.1f} seconds")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def explain(exc: Exception, revision: str | None) -> str:
    """What the Hub's client meant, in a few words and without a full stop."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(exc, RepositoryNotFoundError):
        return "there is no such repository, or it is private and HF_TOKEN gives no access to it"
    if isinstance(exc, RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(exc, RemoteEntryNotFoundError):
        return f"a file is missing there ({exc.response.url})"
    if isinstance(exc, HfHubHTTPError) and exc.response.status_code == 401:
        return "the token in HF_TOKEN, or else that of `hf auth login`, is not valid"
    lines = str(exc).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(exc).__name__
