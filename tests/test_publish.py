"""Weights folders go to a Hub of the tests' own through the real client, and come back."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import HfApi
from PIL import Image

from srgan import Upscaler, WeightsError, load_weights, save_weights
from srgan.weights import CONFIG_FILE, SRGAN_FILE, SRRESNET_FILE
from train import push as module
from train.publish import CARD_FILE, COMPARISON_FILE, EXAMPLE_NAME, main
from train.push import BackgroundPush

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = (CONFIG_FILE, SRRESNET_FILE, SRGAN_FILE)


@pytest.fixture
def folder(tiny_weights, tmp_path) -> Path:
    """A weights folder with card and picture, and a file that is none of the Hub's business."""
    folder = shutil.copytree(tiny_weights, tmp_path / "my-weights")
    (folder / CARD_FILE).write_text(f"---\nlicense: mit\n---\nUpscaler('{EXAMPLE_NAME}')\n")
    Image.new("RGB", (8, 8)).save(folder / COMPARISON_FILE)
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def hub(local_hub, monkeypatch) -> HubServer:
    """A Hub on which `user` is logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return local_hub


@pytest.fixture
def push(folder, monkeypatch, capsys):
    """Runs `train.publish push` on the folder; returns exit status, output and errors."""

    def run(*options: str, repository: str = "user/repo") -> tuple[int, str, str]:
        arguments = ["push", str(folder), repository, *options]
        monkeypatch.setattr(sys, "argv", ["train.publish", *arguments])
        status = main()
        captured = capsys.readouterr()
        assert "hf_" not in captured.out + captured.err
        assert status == bool(captured.err)
        return status, captured.out, captured.err

    return run


def commits(hub: HubServer) -> int:
    return len(hub.repositories["user/repo"].commits)


def uploads(hub: HubServer) -> int:
    return sum(request.startswith("PUT") for request in hub.requests)


# ------------------------------------------------------------------------------------- and back


def test_pushed_weights_come_back_byte_for_byte(hub, folder, push, tmp_path):
    status, out, _ = push()
    assert status == 0
    assert "user/repo: new repository, 5 files in commit" in out
    assert commits(hub) == 2  # the Hub's own first one, and ours
    upscaler = Upscaler("user/repo")
    commit = hub.repositories["user/repo"].branches["main"]
    assert upscaler.weights.revision == commit
    assert commit in out
    for name in WEIGHTS:
        (file,) = (tmp_path / "cache").rglob(f"snapshots/{commit}/{name}")
        assert file.read_bytes() == (folder / name).read_bytes()
    photo = Image.effect_noise((16, 12), 40).convert("RGB")
    assert upscaler.upscale(photo).tobytes() == Upscaler(folder).upscale(photo).tobytes()


def test_only_what_belongs_to_the_weights_goes_up(hub, folder, push):
    push()
    files = hub.files("user/repo")
    assert set(files) == {".gitattributes", CARD_FILE, COMPARISON_FILE, *WEIGHTS}
    assert files[COMPARISON_FILE] == (folder / COMPARISON_FILE).read_bytes()


@pytest.mark.parametrize(
    "options, name", [([], "user/repo"), (["--revision", "dev"], "user/repo@dev")]
)
def test_the_cards_example_names_the_repository(hub, push, options, name):
    push(*options)
    card = hub.files("user/repo", options[-1] if options else "main")[CARD_FILE].decode()
    assert f"Upscaler('{name}')" in card


def test_nothing_is_committed_where_nothing_has_changed(hub, push):
    push()
    before, commit = uploads(hub), hub.repositories["user/repo"].branches["main"]
    status, out, _ = push()
    assert status == 0
    assert f"user/repo: nothing has changed since commit {commit}" in out
    assert (commits(hub), uploads(hub)) == (2, before)


def test_only_what_has_changed_goes_up(hub, folder, push, make_generator):
    push()
    before = uploads(hub)
    files = hub.files("user/repo")
    save_weights(folder, load_weights(folder).srresnet, make_generator(9), adversarial=True)
    _, out, _ = push()
    assert f"same     {len(files[SRRESNET_FILE]):>11,} bytes  {SRRESNET_FILE}" in out
    assert "user/repo: 2 files in commit" in out  # config.json and srgan-x4.safetensors
    assert (commits(hub), uploads(hub) - before) == (3, 1)
    assert hub.files("user/repo")[SRGAN_FILE] == (folder / SRGAN_FILE).read_bytes()


def test_branches_tags_and_commits_can_be_had_apart(hub, folder, push, make_generator):
    push("--tag", "v1")
    first = load_weights("user/repo")
    save_weights(folder, make_generator(8), make_generator(9), adversarial=True)
    _, out, _ = push("--revision", "dev")
    assert "user/repo@dev: new branch, 4 files in commit" in out
    dev = load_weights("user/repo@dev")
    assert dev.checksums != first.checksums
    for spec in ("user/repo", "user/repo@v1", f"user/repo@{first.revision}"):
        assert load_weights(spec).checksums == first.checksums
    assert load_weights(f"user/repo@{dev.revision}").checksums == dev.checksums


def test_a_tag_is_not_moved(hub, folder, push, make_generator):
    push("--tag", "v1")
    assert push("--tag", "v1")[0] == 0  # the same state
    save_weights(folder, make_generator(8), make_generator(9), adversarial=True)
    _, _, err = push("--tag", "v1")
    assert err == "error: user/repo has a tag v1 already, of another state\n"
    assert commits(hub) == 2


@pytest.mark.parametrize("token, opens", [("hf_reader", True), ("hf_other", False), ("", False)])
def test_private_weights_come_back_with_a_token_only(hub, push, monkeypatch, token, opens):
    push("--private")
    assert hub.repositories["user/repo"].private
    monkeypatch.setenv("HF_TOKEN", token)
    if opens:
        assert load_weights("user/repo").source == "user/repo"
    else:
        with pytest.raises(WeightsError, match="private and HF_TOKEN gives no access to it"):
            load_weights("user/repo")


def test_private_weights_do_not_go_to_a_public_repository(hub, push):
    hub.create("user/repo")
    _, _, err = push("--private")
    assert err == "error: user/repo exists already and is public: make it private first\n"
    assert commits(hub) == 1


# ------------------------------------------------------------------------------------- the card


def test_a_card_edited_on_the_hub_is_kept(hub, folder, push):
    push()
    hub.commit("user/repo", {CARD_FILE: b"better words"})
    (folder / COMPARISON_FILE).write_bytes(b"another picture")
    for options in ([], ["--dry-run"], ["--revision", "dev"]):
        _, _, err = push(*options)
        assert err.startswith(f"error: {CARD_FILE} was edited on the Hub: take it over with `hf ")
        assert len(err.splitlines()) == 1
    assert commits(hub) == 3
    assert list(hub.repositories["user/repo"].branches) == ["main"]


def test_force_overwrites_an_edited_card(hub, push):
    push()
    hub.commit("user/repo", {CARD_FILE: b"better words"})
    assert push("--force")[0] == 0
    assert b"license: mit" in hub.files("user/repo")[CARD_FILE]


def test_an_edited_card_that_was_taken_over_is_no_obstacle(hub, folder, push):
    push()
    hub.commit("user/repo", {CARD_FILE: b"better words"})
    (folder / CARD_FILE).write_bytes(b"better words")
    (folder / COMPARISON_FILE).write_bytes(b"another picture")
    assert push()[0] == 0
    assert hub.files("user/repo")[COMPARISON_FILE] == b"another picture"


def test_our_own_card_is_replaced(hub, folder, push):
    push()
    hub.commit("user/repo", {"notes.md": b"of somebody else"})
    (folder / CARD_FILE).write_text("a new card")
    assert push()[0] == 0
    files = hub.files("user/repo")
    assert (files[CARD_FILE], files["notes.md"]) == (b"a new card", b"of somebody else")


# --------------------------------------------------------------------------------------- dry run


def test_dry_run_tells_and_writes_nothing(hub, folder, push):
    status, out, _ = push("--dry-run", "--tag", "v1")
    assert status == 0
    size = (folder / SRGAN_FILE).stat().st_size
    assert f"new      {size:>11,} bytes  {SRGAN_FILE}" in out
    assert "new repository, 5 files would go up in one commit, tag v1; nothing was written" in out
    assert hub.repositories == {}

    push()
    (folder / COMPARISON_FILE).write_bytes(b"another picture")
    _, out, _ = push("--dry-run", "--tag", "v1")
    assert f"changed  {15:>11,} bytes  {COMPARISON_FILE}" in out
    assert "user/repo: 1 file would go up" in out
    _, out, _ = push("--dry-run", "--revision", "dev")
    assert "user/repo@dev: new branch, 2 files would go up" in out  # the card names the branch
    repository = hub.repositories["user/repo"]
    assert (commits(hub), list(repository.branches), repository.tags) == (2, ["main"], {})


# ---------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "token, reason",
    [
        ("", "there is no Hugging Face token: run `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "the token in HF_TOKEN, or else that of `hf auth login`, is not valid"),
        ("hf_reader", "the Hugging Face token gives no right to write to user/repo"),
        ("hf_other", "the Hugging Face token gives no right to write to user/repo"),
    ],
)
def test_without_the_right_to_write_there_is_one_line(hub, push, monkeypatch, token, reason):
    for exists in (False, True):
        if exists:
            hub.create("user/repo")
        monkeypatch.setenv("HF_TOKEN", token)
        _, out, err = push()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert reason in err
        assert uploads(hub) == 0


@pytest.mark.parametrize(
    "repository, reason",
    [
        ("repo", "expected a repository as user/repo, got 'repo'"),
        ("user/repo@dev", "expected a repository as user/repo, got 'user/repo@dev'"),
        ("user/a--b", "user/a--b can't be the name of a Hub repository: Cannot have -- or .."),
    ],
)
def test_impossible_names_are_one_line(hub, push, repository, reason):
    _, _, err = push(repository=repository)
    assert err.startswith(f"error: {reason}")
    assert len(err.splitlines()) == 1


def test_damaged_weights_do_not_go_up(hub, folder, push):
    data = (folder / SRGAN_FILE).read_bytes()
    (folder / SRGAN_FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    _, _, err = push()
    assert f"{SRGAN_FILE} is damaged" in err
    assert hub.requests == []


@pytest.mark.parametrize(
    "fault, reason", [("refused", "refused"), ("500", "500"), ("silent", "no answer within 0.5 s")]
)
def test_unreachable_hub_is_one_line_within_seconds(hub, push, monkeypatch, fault, reason):
    monkeypatch.setattr(module, "ANSWER_PATIENCE", 0.5)
    if fault == "refused":
        hub.stop()
    hub.fault = fault
    start = time.monotonic()
    _, _, err = push()
    assert time.monotonic() - start < 5
    assert err.startswith("error: user/repo can't be pushed to the Hub: ")
    assert reason in err
    assert len(err.splitlines()) == 1


def test_hub_that_falls_silent_during_the_upload_ends_the_program(hub, folder):
    """Also threads of the client's must not keep Python from ending."""
    hub.fault, hub.fault_at = "silent", "PUT /lfs"
    script = (
        "import sys; from train import publish, push\n"
        "push.ANSWER_PATIENCE, push.SLOWEST = 1.0, 1e9\n"
        f"sys.argv = ['publish', 'push', {str(folder)!r}, 'user/repo']\n"
        "sys.exit(publish.main())"
    )
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_writer"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 1
    assert (
        done.stderr == "error: user/repo can't be pushed to the Hub: no answer within 4.0 seconds\n"
    )
    assert set(hub.files("user/repo")) == {".gitattributes"}


def test_nothing_is_put_on_top_of_anothers_commit(hub, push, monkeypatch):
    preupload = HfApi.preupload_lfs_files

    def slow_preupload(*arguments, **options):
        hub.commit("user/repo", {"notes.md": b"quick"})
        preupload(*arguments, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", slow_preupload)
    _, _, err = push()
    assert err == "error: user/repo was changed by somebody else meanwhile: do it again\n"
    assert set(hub.files("user/repo")) == {".gitattributes", "notes.md"}


def test_the_token_is_in_no_file(hub, push, tmp_path):
    push()
    load_weights("user/repo")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if b"hf_writer" in path.read_bytes()] == []
    assert not any(b"hf_writer" in data for data in hub.files("user/repo").values())


# ------------------------------------------------------------------------- beside a training


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    (tmp_path / "log.jsonl").write_text("{}\n")
    return {"runs/a/log.jsonl": tmp_path / "log.jsonl"}


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_background_uploads_follow_one_another(hub, files, caplog):
    caplog.set_level("INFO")
    background = BackgroundPush("user/repo@dev", every=1e-9)
    hub.fault, hub.fault_at = "silent", "POST .*/commit/"
    background.offer(files)
    wait_for(lambda: any("/commit/" in request for request in hub.requests))
    files["runs/a/log.jsonl"].write_text("{}\n{}\n")
    background.offer(files)  # one is under way
    hub.fault = None
    wait_for(lambda: "uploaded to user/repo" in caplog.text)
    assert hub.files("user/repo", "dev")["runs/a/log.jsonl"] == b"{}\n"
    background.finish(files)
    assert hub.files("user/repo", "dev")["runs/a/log.jsonl"] == b"{}\n{}\n"
    assert hub.repositories["user/repo"].private
    assert commits(hub) == 3


def test_background_uploads_keep_their_distance(hub, files):
    background = BackgroundPush("user/repo", every=60)
    background.offer(files)
    wait_for(lambda: "user/repo" in hub.repositories and commits(hub) == 2)
    before = len(hub.requests)
    background.offer(files)
    time.sleep(0.3)
    assert len(hub.requests) == before


def test_an_existing_public_repository_serves_for_background_uploads(hub, files):
    hub.create("user/repo")
    BackgroundPush("user/repo", every=None).finish(files)
    assert "runs/a/log.jsonl" in hub.files("user/repo")


def test_a_training_that_never_began_leaves_the_hub_alone(hub):
    BackgroundPush("user/repo", every=None).finish({})
    assert hub.requests == []


@pytest.mark.parametrize("fault", ["refused", "500", "silent", "no token"])
def test_background_uploads_that_fail_are_a_warning(hub, files, monkeypatch, caplog, fault):
    monkeypatch.setattr(module, "ANSWER_PATIENCE", 0.5)
    if fault == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif fault == "refused":
        hub.stop()
    hub.fault = fault
    background = BackgroundPush("user/repo", every=1e-9)
    start = time.monotonic()
    background.offer(files)
    assert time.monotonic() - start < 0.3
    background.finish(files)
    assert time.monotonic() - start < 5
    warnings = [r.message for r in caplog.records if r.name == "train.push"]
    assert len(warnings) == 2
    assert all(text.startswith("not uploaded, the training goes on: ") for text in warnings)


def test_the_end_of_a_training_waits_for_the_hub_within_a_bound(hub, files, monkeypatch, caplog):
    monkeypatch.setattr(module, "FINISH_PATIENCE", 0.5)
    hub.fault = "silent"
    background = BackgroundPush("user/repo", every=None)
    start = time.monotonic()
    background.finish(files)
    assert time.monotonic() - start < 5
    assert "the last upload to user/repo did not end in time" in caplog.text
