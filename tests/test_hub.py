"""Weights from a Hub: the real client against a small server of ours, and what can go wrong."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import constants

from srgan import WeightsError, hub, load_weights, save_weights
from srgan import weights as module
from srgan.hub import within
from srgan.weights import CONFIG_FILE, PHOTO_FILE, SRGAN_FILE, SRRESNET_FILE
from tests.benchmarks.hub_faults import BUNDLED, CASES, WORKING, Start, start_app


@pytest.fixture
def published(local_hub, tiny_weights) -> HubServer:
    """A Hub with the tiny weights in `user/repo`."""
    put(local_hub, tiny_weights)
    return local_hub


def put(server: HubServer, folder: Path, branch: str = "main") -> str:
    """Commits a weights folder; returns the commit."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return server.commit("user/repo", files, branch)


def head(server: HubServer) -> str:
    return server.repositories["user/repo"].branches["main"]


@pytest.fixture
def other_weights(make_generator, tmp_path) -> Path:
    save_weights(tmp_path / "other", make_generator(3), make_generator(4), adversarial=True)
    return tmp_path / "other"


@pytest.fixture
def bundled(other_weights, monkeypatch) -> Path:
    """Makes other weights than the published ones the bundled ones."""
    monkeypatch.setattr(module, "BUNDLED_FOLDER", other_weights)
    return other_weights


def first_weight(weights) -> float:
    return weights.srgan.head.bias[0].item()


# ------------------------------------------------------------------------------------- pulling


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@COMMIT"])
def test_weights_arrive_byte_for_byte(published, tiny_weights, tmp_path, revision):
    commit = head(published)
    published.repositories["user/repo"].tags["v1"] = commit
    weights = load_weights("user/repo" + revision.replace("COMMIT", commit))
    assert (weights.source, weights.revision, weights.notices) == ("user/repo", commit, ())
    assert first_weight(weights) == first_weight(load_weights(tiny_weights))
    for name in (CONFIG_FILE, SRRESNET_FILE, SRGAN_FILE):
        (file,) = (tmp_path / "cache").rglob(f"snapshots/{commit}/{name}")
        assert file.read_bytes() == (tiny_weights / name).read_bytes()


def test_photo_weights_arrive_if_the_config_lists_them(
    published, tiny_photo_weights, make_generator
):
    assert load_weights("user/repo").photo is None
    assert not any(PHOTO_FILE in request for request in published.requests)
    put(published, tiny_photo_weights)
    weights = load_weights("user/repo")
    assert weights.photo.head.bias[0] == make_generator(5).head.bias[0]
    published.requests.clear()
    assert load_weights(f"user/repo@{weights.revision}").photo is not None
    assert published.requests == []


def test_a_commit_in_the_cache_without_its_photo_weights_is_completed(
    published, tiny_photo_weights, tmp_path
):
    spec = f"user/repo@{put(published, tiny_photo_weights)}"
    load_weights(spec)
    (file,) = (tmp_path / "cache").rglob(PHOTO_FILE)
    file.unlink()
    published.requests.clear()
    assert load_weights(spec).photo is not None
    assert any(PHOTO_FILE in request for request in published.requests)


def test_damaged_photo_weights_are_forgotten(published, tiny_photo_weights, tmp_path):
    spec = f"user/repo@{put(published, tiny_photo_weights)}"
    load_weights(spec)
    (link,) = (tmp_path / "cache").rglob(PHOTO_FILE)
    link.resolve().write_bytes(b"")
    with pytest.raises(WeightsError, match=f"^user/repo/{PHOTO_FILE} is damaged"):
        load_weights(spec)
    assert load_weights(spec).photo is not None


def test_a_config_on_the_hub_that_is_none_is_named(published):
    published.commit("user/repo", {CONFIG_FILE: b"[]"})
    with pytest.raises(WeightsError, match=f"^user/repo/{CONFIG_FILE} is not a weights config"):
        load_weights("user/repo")


def test_branches_and_commits_are_told_apart(published, other_weights):
    first = head(published)
    second = put(published, other_weights, branch="dev/2")
    assert load_weights("user/repo@dev/2").revision == second
    assert load_weights("user/repo").revision == first
    assert load_weights(f"user/repo@{second}").revision == second


def test_a_new_commit_is_picked_up(published, other_weights):
    load_weights("user/repo")
    second = put(published, other_weights)
    weights = load_weights("user/repo")
    assert weights.revision == second
    assert first_weight(weights) == first_weight(load_weights(other_weights))


def test_a_pinned_commit_stays(published, tiny_weights, other_weights):
    first = head(published)
    put(published, other_weights)
    weights = load_weights(f"user/repo@{first}")
    assert weights.revision == first
    assert first_weight(weights) == first_weight(load_weights(tiny_weights))


def test_what_is_in_the_cache_is_not_fetched_again(published):
    load_weights("user/repo")
    published.requests.clear()
    load_weights("user/repo")
    assert {request.split()[0] for request in published.requests} == {"HEAD"}


def test_a_commit_in_the_cache_needs_no_hub(published):
    spec = f"user/repo@{head(published)}"
    load_weights(spec)
    published.requests.clear()
    weights = load_weights(spec)
    assert published.requests == []
    assert weights.notices == ()


@pytest.mark.parametrize(
    "token, reason",
    [
        ("", "private and HF_TOKEN gives no access"),
        ("hf_other", "private and HF_TOKEN gives no access"),
        ("hf_wrong", "the token in HF_TOKEN, or else that of `hf auth login`, is not valid"),
    ],
)
def test_a_private_repository_stays_closed_without_its_token(published, monkeypatch, token, reason):
    published.repositories["user/repo"].private = True
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_weights("user/repo")
    assert "hf_" not in str(caught.value)


def test_a_private_repository_opens_with_a_token(published, monkeypatch):
    published.repositories["user/repo"].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert load_weights("user/repo").revision == head(published)


# -------------------------------------------------------------------------------------- faults


def test_what_the_hub_does_not_have_is_named(published):
    with pytest.raises(WeightsError, match=r"user/nothing can't .*no such repository"):
        load_weights("user/nothing")
    with pytest.raises(WeightsError, match=r"user/repo can't .*no revision 'v9'"):
        load_weights("user/repo@v9")
    published.fault, published.fault_at = "missing", SRGAN_FILE
    with pytest.raises(
        WeightsError, match=rf"user/repo can't .*missing there \(http.*{SRGAN_FILE}"
    ):
        load_weights("user/repo")
    with pytest.raises(WeightsError, match="a--b/c can't be the name of a Hub repository"):
        load_weights("a--b/c")


def test_refused_connection_is_an_error_at_once(published):
    published.stop()
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"user/repo can't be had from the Hub: .*refused"):
        load_weights("user/repo")
    assert time.monotonic() - start < 20  # the client alone: 24


def test_failing_hub_is_an_error(published):
    published.fault = "500"
    with pytest.raises(WeightsError, match=r"user/repo can't be had from the Hub: .*500"):
        load_weights("user/repo")


def test_silent_hub_costs_five_seconds(published):
    published.fault = "silent"
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"no answer within 5\.0 seconds"):
        load_weights("user/repo")
    assert 5 <= time.monotonic() - start < 15  # the client alone: 393


@pytest.mark.parametrize("fault", ["refused", "500", "private", "offline"])
def test_unreachable_hub_leaves_the_cache_and_a_notice(published, fault, monkeypatch):
    expected = load_weights("user/repo")
    if fault == "refused":
        published.stop()
    elif fault == "private":
        published.repositories["user/repo"].private = True
    elif fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        published.fault = fault
    weights = load_weights("user/repo")
    assert (weights.source, weights.revision) == ("user/repo", head(published))
    assert first_weight(weights) == first_weight(expected)
    (notice,) = weights.notices
    assert notice.startswith("user/repo is used as it was when last fetched: ")


@pytest.mark.parametrize("fault", ["drip", "truncated", "corrupt", "missing"])
def test_weights_that_do_not_arrive_are_left_for_the_bundled_ones(
    published, bundled, monkeypatch, fault
):
    monkeypatch.setattr(hub, "HUB_PATIENCE", 1.0)
    published.fault = fault
    weights = load_weights("user/repo", fallback=True)
    assert weights.source == module.BUNDLED
    assert first_weight(weights) == first_weight(load_weights(bundled))
    (notice,) = weights.notices
    assert notice.startswith("The bundled weights are in use: ")

    published.fault = None
    monkeypatch.setattr(hub, "HUB_PATIENCE", 30.0)
    weights = load_weights("user/repo", fallback=True)
    assert (weights.source, weights.notices) == ("user/repo", ())


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


def test_damaged_file_is_named(published):
    published.fault = "corrupt"
    with pytest.raises(WeightsError, match=f"^user/repo/{SRRESNET_FILE} is damaged: its sha256 is"):
        load_weights("user/repo")


def test_cache_damaged_on_disk_heals(published, tmp_path):
    commit = head(published)
    load_weights(f"user/repo@{commit}")
    (link,) = (tmp_path / "cache").rglob(f"snapshots/{commit}/{SRRESNET_FILE}")
    file = link.resolve()
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(WeightsError, match=f"{SRRESNET_FILE} is damaged"):
        load_weights(f"user/repo@{commit}")
    assert load_weights(f"user/repo@{commit}").revision == commit


# -------------------------------------------------------------------------------------- the app


HUB_CASES = [case for case in CASES if case != BUNDLED]


@pytest.fixture(scope="module")
def starts() -> dict[str, Start]:
    """The app started in every case, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(HUB_CASES, pool.map(start_app, HUB_CASES), strict=True))


@pytest.mark.parametrize("case", HUB_CASES)
def test_the_app_serves_soon_whatever_the_hub_does(starts, case):
    start = starts[case]
    assert start.weights_seconds < 10  # 5 for the Hub; then to read the others, on a busy machine
    if case == WORKING:
        assert start.source == "user/srgan-x4"
        assert "bundled" not in " ".join(start.notices)
    else:
        assert start.source == module.BUNDLED
        assert start.notices[0].startswith("The bundled weights are in use: user/srgan-x4")


# --------------------------------------------------------------------------------------- Spaces


def test_a_space_uses_its_owners_weights(published, bundled, monkeypatch):
    monkeypatch.setattr(module, "SPACE_REPOSITORY", "repo")
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "user")
    assert load_weights().source == "user/repo"
    assert load_weights("bundled").source == module.BUNDLED
    monkeypatch.setenv("SRGAN_WEIGHTS", "bundled")
    assert load_weights().source == module.BUNDLED


def test_a_space_whose_owner_has_no_weights_uses_the_bundled_ones_quietly(
    published, bundled, monkeypatch
):
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "user")
    weights = load_weights()
    assert (weights.source, weights.notices) == (module.BUNDLED, ())


def test_a_space_that_cannot_reach_the_hub_says_so(published, bundled, monkeypatch):
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "user")
    published.stop()
    weights = load_weights()
    assert weights.source == module.BUNDLED
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
