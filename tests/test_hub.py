"""The real Hub client against a small server that answers downloads as the Hub does."""

import hashlib
import http.server
import socket
import threading
import time
import urllib.parse
from pathlib import Path

import pytest
from huggingface_hub import constants

from srgan import WeightsError, hub, load_weights, save_weights
from srgan import weights as module
from srgan.hub import within
from srgan.weights import BUNDLED, CONFIG_FILE, SRGAN_FILE, SRRESNET_FILE

FIRST, SECOND = "1" * 40, "2" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Repository `user/repo`, its commits and branches, and how the server misbehaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.token: str | None = None  # that is asked for
        self.status: int | None = None  # that everything is answered with
        self.may_send = threading.Event()  # large files wait for it
        self.may_send.set()
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def publish(self, commit: str, folder: Path, branch: str = "main") -> None:
        self.commits[commit] = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.branches[branch] = commit


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub = self.server
        if not self.path.startswith("/api/"):
            hub.requests.append(f"{self.command} {self.path}")
        if hub.status is not None:
            return self.fail(hub.status)
        repository, _, place = self.path[1:].partition("/resolve/")
        revision, _, name = place.partition("/")
        revision = urllib.parse.unquote(revision)
        authorized = hub.token in (None, (self.headers["Authorization"] or "")[len("Bearer ") :])
        if repository != "user/repo" or not authorized:
            return self.fail(404 if authorized else 401, "RepoNotFound")
        commit = hub.branches.get(revision, revision)
        if commit not in hub.commits:
            return self.fail(404, "RevisionNotFound")
        if name not in hub.commits[commit]:
            return self.fail(404, "EntryNotFound", commit)
        data = hub.commits[commit][name]
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            if name != CONFIG_FILE:
                hub.may_send.wait(60)
            self.wfile.write(data)

    def fail(self, status, code=None, commit=None):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def use_endpoint(monkeypatch, port: int, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HOME would do, had they been set before the client was imported."""
    endpoint = f"http://127.0.0.1:{port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Hub()
    use_endpoint(monkeypatch, server.server_port, tmp_path / "cache")
    yield server
    server.may_send.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(server, tiny_weights) -> Hub:
    server.publish(FIRST, tiny_weights)
    return server


@pytest.fixture
def other_weights(make_generator, tmp_path) -> Path:
    save_weights(tmp_path / "other", make_generator(3), make_generator(4), adversarial=True)
    return tmp_path / "other"


@pytest.fixture
def bundled(other_weights, monkeypatch) -> Path:
    """Makes other weights than the published ones the bundled ones."""
    monkeypatch.setattr(module, "BUNDLED_FOLDER", other_weights)
    return other_weights


def stop(server: Hub) -> None:
    """From now on connections are refused."""
    server.shutdown()
    server.server_close()


def first_weight(weights) -> float:
    return weights.srgan.head.bias[0].item()


# ------------------------------------------------------------------------------------- pulling


@pytest.mark.parametrize("spec", ["user/repo", "user/repo@main", f"user/repo@{FIRST}"])
def test_weights_arrive_byte_for_byte(published, tiny_weights, tmp_path, spec):
    weights = load_weights(spec)
    assert (weights.source, weights.revision, weights.notices) == ("user/repo", FIRST, ())
    assert first_weight(weights) == first_weight(load_weights(tiny_weights))
    for name in (CONFIG_FILE, SRRESNET_FILE, SRGAN_FILE):
        (file,) = (tmp_path / "cache").rglob(f"snapshots/{FIRST}/{name}")
        assert file.read_bytes() == (tiny_weights / name).read_bytes()


def test_branches_and_commits_are_told_apart(published, other_weights):
    published.publish(SECOND, other_weights, branch="dev/2")
    assert load_weights("user/repo@dev/2").revision == SECOND
    assert load_weights("user/repo").revision == FIRST
    assert load_weights(f"user/repo@{SECOND}").revision == SECOND


def test_a_new_commit_is_picked_up(published, other_weights):
    load_weights("user/repo")
    published.publish(SECOND, other_weights)
    weights = load_weights("user/repo")
    assert weights.revision == SECOND
    assert first_weight(weights) == first_weight(load_weights(other_weights))


def test_what_is_in_the_cache_is_not_fetched_again(published):
    load_weights("user/repo")
    published.requests.clear()
    load_weights("user/repo")
    assert {request.split()[0] for request in published.requests} == {"HEAD"}


def test_a_commit_in_the_cache_needs_no_hub(published):
    load_weights(f"user/repo@{FIRST}")
    published.requests.clear()
    weights = load_weights(f"user/repo@{FIRST}")
    assert published.requests == []
    assert weights.notices == ()


def test_a_private_repository_opens_with_a_token(published, monkeypatch):
    published.token = "hf_right"
    for token in ("", "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(WeightsError, match="private and HF_TOKEN gives no access") as caught:
            load_weights("user/repo")
        assert "hf_wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert load_weights("user/repo").revision == FIRST


# -------------------------------------------------------------------------------------- faults


def test_what_the_hub_does_not_have_is_named(published):
    with pytest.raises(WeightsError, match=r"user/nothing can't .*no such repository"):
        load_weights("user/nothing")
    with pytest.raises(WeightsError, match=r"user/repo can't .*no revision 'v9'"):
        load_weights("user/repo@v9")
    del published.commits[FIRST][SRGAN_FILE]
    with pytest.raises(
        WeightsError, match=rf"user/repo can't .*missing there \(http.*{SRGAN_FILE}"
    ):
        load_weights("user/repo")
    with pytest.raises(WeightsError, match="a--b/c can't be the name of a Hub repository"):
        load_weights("a--b/c")


def test_refused_connection_is_an_error_at_once(published):
    stop(published)
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"user/repo can't be had from the Hub: .*refused"):
        load_weights("user/repo")
    assert time.monotonic() - start < 20  # the client alone: 24


def test_failing_hub_is_an_error(published):
    published.status = 500
    with pytest.raises(WeightsError, match=r"user/repo can't be had from the Hub: .*500"):
        load_weights("user/repo")


def test_silent_hub_costs_five_seconds(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_endpoint(monkeypatch, silent.getsockname()[1], tmp_path)
        start = time.monotonic()
        with pytest.raises(WeightsError, match=r"no answer within 5\.0 seconds"):
            load_weights("user/repo")
        assert 5 <= time.monotonic() - start < 15  # the client alone: 393


@pytest.mark.parametrize("fault", ["refused", "500", "private", "offline"])
def test_unreachable_hub_leaves_the_cache_and_a_notice(published, fault, monkeypatch):
    expected = load_weights("user/repo")
    if fault == "refused":
        stop(published)
    elif fault == "500":
        published.status = 500
    elif fault == "private":
        published.token = "hf_secret"
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    weights = load_weights("user/repo")
    assert (weights.source, weights.revision) == ("user/repo", FIRST)
    assert first_weight(weights) == first_weight(expected)
    (notice,) = weights.notices
    assert notice.startswith("user/repo is used as it was when last fetched: ")


def test_slow_hub_is_left_for_the_bundled_weights(published, bundled, monkeypatch):
    monkeypatch.setattr(hub, "HUB_PATIENCE", 1.0)
    published.may_send.clear()
    weights = load_weights("user/repo", fallback=True)
    assert weights.source == BUNDLED
    assert "user/repo can't be had from the Hub: no answer within" in weights.notices[0]

    published.may_send.set()
    monkeypatch.setattr(hub, "HUB_PATIENCE", 30.0)
    assert load_weights("user/repo", fallback=True).source == "user/repo"


@pytest.mark.parametrize("fallback, patience", [(False, hub.DOWNLOAD_PATIENCE), (True, 5)])
def test_slow_hub_is_waited_for_where_nothing_else_will_do(
    published, monkeypatch, fallback, patience
):
    seconds = []
    monkeypatch.setattr(hub, "within", lambda s, f: (seconds.append(s), f())[1])
    load_weights("user/repo", fallback=fallback)
    answer, download = seconds
    assert answer == 5
    assert patience - 5 < download <= patience


def test_damaged_file_is_refused_and_fetched_again(published, bundled):
    good = published.commits[FIRST][SRGAN_FILE]
    published.commits[FIRST][SRGAN_FILE] = good[:-1] + bytes([good[-1] ^ 1])
    weights = load_weights("user/repo", fallback=True)
    assert weights.source == BUNDLED
    assert f"{SRGAN_FILE} is damaged" in weights.notices[0]

    published.commits[FIRST][SRGAN_FILE] = good
    assert load_weights("user/repo", fallback=True).source == "user/repo"


def test_cache_damaged_on_disk_heals(published, tmp_path):
    load_weights(f"user/repo@{FIRST}")
    (link,) = (tmp_path / "cache").rglob(f"snapshots/{FIRST}/{SRRESNET_FILE}")
    file = link.resolve()
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(WeightsError, match=f"{SRRESNET_FILE} is damaged"):
        load_weights(f"user/repo@{FIRST}")
    assert load_weights(f"user/repo@{FIRST}").revision == FIRST


# --------------------------------------------------------------------------------------- Spaces


def test_a_space_uses_its_owners_weights(published, bundled, monkeypatch):
    monkeypatch.setattr(module, "SPACE_REPOSITORY", "repo")
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "user")
    assert load_weights().source == "user/repo"
    assert load_weights("bundled").source == BUNDLED
    monkeypatch.setenv("SRGAN_WEIGHTS", "bundled")
    assert load_weights().source == BUNDLED


def test_a_space_whose_owner_has_no_weights_uses_the_bundled_ones_quietly(
    published, bundled, monkeypatch
):
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "user")
    weights = load_weights()
    assert (weights.source, weights.notices) == (BUNDLED, ())


def test_a_space_that_cannot_reach_the_hub_says_so(published, bundled, monkeypatch):
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "user")
    stop(published)
    weights = load_weights()
    assert weights.source == BUNDLED
    assert weights.notices[0].startswith("The bundled weights are in use: user/srgan-x4 can't")


# ---------------------------------------------------------------------------------------- within


def test_within_passes_results_and_errors_on():
    assert within(10, lambda: 7) == 7
    with pytest.raises(KeyError, match="gone"):
        within(10, lambda: {}["gone"])


def test_within_abandons_what_takes_too_long():
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.0 seconds"):
        within(-1, never.wait)
    never.set()
