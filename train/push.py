"""Files -> one commit in a model repository on the Hugging Face Hub.

The token is the one that the Hub's client finds: HF_TOKEN, or else that of `hf auth login`.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from srgan.hub import HUB_SPEC, explain, within

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
MAIN = "main"
NEW, CHANGED, SAME = "new", "changed", "same"
#: Seconds that the Hub may take for an answer; bytes a second of the slowest line that will do.
ANSWER_PATIENCE, SLOWEST = 15.0, 50_000
#: Seconds that the end of a training waits for its last upload.
FINISH_PATIENCE = 120.0


class PushError(Exception):
    """The files are not on the Hub; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did, or with `dry_run` would do.

    Attributes:
        changes: file -> `NEW`, `CHANGED` or `SAME`, compared with the branch.
        sizes: file -> bytes.
        created: what there was not before, of "repository" and "branch".
        commit: head of the branch now; None where a dry run found none.
    """

    changes: dict[str, str]
    sizes: dict[str, int]
    created: list[str]
    commit: str | None


def push(
    files: Mapping[str, bytes],
    repository: str,
    revision: str = MAIN,
    *,
    title: str,
    private: bool | None = None,
    tag: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Puts the files that differ into one commit; makes repository and branch where there is none.

    What is only on the Hub stays. Nothing is committed onto what somebody else pushed meanwhile.

    Args:
        files: path in the repository -> contents.
        repository: `user/repo`.
        revision: branch; a new one starts where the main branch is.
        title: of the commit. A README.md whose last commit has another title is another's work.
        private: True for a private repository, be it new or not; False for a public one if it is
            new; None for what it is, private if it is new.
        tag: name to give to the branch's head afterwards.
        force: overwrite another's README.md.
        dry_run: look, and write nothing.

    Raises:
        PushError: for whatever reason; the branch is as it was unless the tag alone failed.
    """
    spec = HUB_SPEC.fullmatch(repository)
    if not spec or spec["revision"]:
        raise PushError(f"expected a repository as user/repo, got {repository!r}")
    disable_progress_bars()  # a training has its own
    api = HfApi()

    def ask(function, *arguments, **options) -> Any:
        # The client waits for ever by itself.
        return within(ANSWER_PATIENCE, lambda: function(repository, *arguments, **options))

    sizes = {name: len(data) for name, data in files.items()}
    try:
        within(ANSWER_PATIENCE, api.whoami)  # a token that is good, a Hub that answers
        created = []
        try:
            info = ask(api.model_info)
        except RepositoryNotFoundError:
            created.append("repository")
            if dry_run:
                changes = dict.fromkeys(files, NEW)
                return Pushed(changes=changes, sizes=sizes, created=created, commit=None)
            ask(api.create_repo, private=private is not False)
        else:
            if private and not info.private:
                raise PushError(f"{repository} exists already and is public: make it private first")

        refs = ask(api.list_repo_refs)
        start = revision
        if all(branch.name != revision for branch in refs.branches):
            created.append("branch")
            start = MAIN
        info = ask(api.model_info, revision=start, files_metadata=True)
        head = info.sha
        remote = {file.rfilename: file for file in info.siblings}
        changes = {name: _compare(data, remote.get(name)) for name, data in files.items()}
        changed = {name: files[name] for name, change in changes.items() if change != SAME}
        if changes.get(CARD_FILE) == CHANGED and not force:
            (card,) = ask(api.get_paths_info, [CARD_FILE], revision=start, expand=True)
            if card.last_commit.title != title:
                raise PushError(
                    f"{CARD_FILE} was edited on the Hub: take it over with `hf download "
                    f"{repository} {CARD_FILE} --local-dir FOLDER`, or overwrite it with --force"
                )
        tagged = {known.name: known.target_commit for known in refs.tags}.get(tag)
        if tagged and (changed or tagged != head):
            raise PushError(f"{repository} has a tag {tag} already, of another state")

        if not dry_run:
            if "branch" in created:
                ask(api.create_branch, branch=revision)
            if changed:
                seconds = 4 * ANSWER_PATIENCE + sum(map(len, changed.values())) / SLOWEST
                upload = partial(_upload, api, changed, repository, revision, title, head)
                head = within(seconds, upload)
            if tag and not tagged:
                ask(api.create_tag, tag=tag, revision=head)
        return Pushed(changes=changes, sizes=sizes, created=created, commit=head)
    except PushError:
        raise
    except Exception as exc:  # the client's transport errors share no base class between releases
        raise PushError(_explain(exc, repository, revision)) from exc


def _upload(
    api: HfApi, files: Mapping[str, bytes], repository: str, revision: str, title: str, head: str
) -> str:
    """One commit onto `head`, the branch's; returns the new one."""
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    # Singly, for several go through a pool of threads that Python waits for when it ends.
    for operation in operations:
        api.preupload_lfs_files(repository, [operation], revision=revision)
    commit = api.create_commit(
        repository, operations, commit_message=title, revision=revision, parent_commit=head
    )
    return commit.oid


def _compare(data: bytes, remote: Any) -> str:
    """Contents with a file on the Hub, a `RepoSibling`."""
    if remote is None:
        return NEW
    if remote.lfs:
        return SAME if remote.lfs.sha256 == hashlib.sha256(data).hexdigest() else CHANGED
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as Git names it
    return SAME if remote.blob_id == blob else CHANGED


def _explain(exc: BaseException, repository: str, revision: str) -> str:
    while isinstance(exc, RuntimeError) and exc.__cause__:  # "Error while uploading …"
        exc = exc.__cause__
    if isinstance(exc, LocalTokenNotFoundError):
        return "there is no Hugging Face token: run `hf auth login`, or set HF_TOKEN"
    if isinstance(exc, HFValidationError):
        return f"{repository} can't be the name of a Hub repository: {exc}"
    if isinstance(exc, HfHubHTTPError) and not isinstance(exc, RepositoryNotFoundError):
        if exc.response.status_code == 403:
            return f"the Hugging Face token gives no right to write to {repository}"
        if exc.response.status_code == 412:
            return f"{repository} was changed by somebody else meanwhile: do it again"
    return f"{repository} can't be pushed to the Hub: {explain(exc, revision)}"


class BackgroundPush:
    """Uploads in a thread beside a training, which it neither stops nor slows.

    There is one upload at a time. One that fails is a warning in the log; the next is its repeat.

    Args:
        target: `user/repo` or `user/repo@branch`; a new repository becomes a private one.
        every: least minutes from one upload's start to the next one's; None for `finish` alone.
    """

    def __init__(self, target: str, every: float | None):
        spec = HUB_SPEC.fullmatch(target)
        self._repository, self._revision = spec["repository"], spec["revision"] or MAIN
        self._every = every
        self._started: float | None = None
        self._thread: threading.Thread | None = None

    def offer(self, files: Mapping[str, Path]) -> None:
        """Uploads the files as they are now, if an upload is due and none is under way.

        Args:
            files: path in the repository -> file.
        """
        now = time.monotonic()
        if self._every is None or (self._thread and self._thread.is_alive()):
            return
        if self._started is None or now - self._started >= 60 * self._every:
            self._start(files)

    def finish(self, files: Mapping[str, Path]) -> None:
        """Uploads the files as they are now, waiting at most `FINISH_PATIENCE` seconds."""
        if not files:  # the training failed before it began
            return
        deadline = time.monotonic() + FINISH_PATIENCE
        if self._thread:
            self._thread.join(FINISH_PATIENCE)
        if not (self._thread and self._thread.is_alive()):
            self._start(files)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.warning("the last upload to %s did not end in time", self._repository)

    def _start(self, files: Mapping[str, Path]) -> None:
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._push, args=(dict(files),), daemon=True)
        self._thread.start()

    def _push(self, files: Mapping[str, Path]) -> None:
        try:
            contents = {name: path.read_bytes() for name, path in files.items()}
            title = f"Training: {', '.join(sorted({str(Path(name).parent) for name in files}))}"
            pushed = push(contents, self._repository, self._revision, title=title)
        except (PushError, OSError) as exc:
            logger.warning("not uploaded, the training goes on: %s", exc)
        else:
            logger.info("uploaded to %s, commit %.7s", self._repository, pushed.commit)
