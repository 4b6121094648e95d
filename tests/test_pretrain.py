"""Stage 1 on a tiny network: results, resuming, and what goes wrong."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srgan.generator import GeneratorConfig
from srgan.metrics import psnr_y
from srgan.weights import SRRESNET_FILE, load_weights
from tests.runs import assert_equal, assert_same_state, entries
from tests.torchrun import launch
from train import pretrain as module
from train.checkpoint import LAST_FILE, CheckpointError, load_checkpoint, save_checkpoint
from train.data import CropSampler
from train.loop import (
    CONFIG_FILE,
    LOG_FILE,
    TrainingError,
    fix_batch_norm,
    join_world,
    make_optimizers,
    mean_psnr,
    measure_batch_norm,
    moving_average,
    update_average,
    use_bf16,
)
from train.pretrain import PretrainConfig, pretrain

ROOT = Path(__file__).resolve().parent.parent


def config(data: Path, out: Path, **settings) -> PretrainConfig:
    defaults = {
        "steps": 8,
        "crop": 16,
        "batch": 2,
        "warmup": 2,
        "validate_every": 2,
        "device": "cpu",
        "precision": "float32",
        "generator": GeneratorConfig(channels=4, blocks=1),
    }
    return PretrainConfig(data=data, out=out, **(defaults | settings))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    """The folder of a run of 8 steps."""
    out = tmp_path_factory.mktemp("uninterrupted")
    pretrain(config(data, out))
    return out


# ------------------------------------------------------------------------------------- training


def test_run_leaves_weights_log_settings_and_checkpoint(data, uninterrupted):
    log = entries(uninterrupted)
    assert [entry["step"] for entry in log] == [2, 4, 6, 8]
    assert all(0 < entry["loss"] < 1 and entry["psnr_y"] > 5 for entry in log)
    weights = load_weights(uninterrupted / SRRESNET_FILE)
    assert weights.srresnet.config == GeneratorConfig(channels=4, blocks=1)
    assert not weights.adversarial
    settings = json.loads((uninterrupted / CONFIG_FILE).read_text())
    assert (settings["steps"], settings["data"]) == (8, str(data))
    assert list(uninterrupted.glob("events.out.tfevents.*"))
    assert not list(uninterrupted.glob("*.part"))


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_compiled_run_learns_the_same(data, uninterrupted, tmp_path):
    pretrain(config(data, tmp_path, compile=True))
    for compiled, eager in zip(entries(tmp_path), entries(uninterrupted), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-3)


def test_returns_the_best_score(data, tmp_path):
    best = pretrain(config(data, tmp_path))
    assert best == max(entry["psnr_y"] for entry in entries(tmp_path))


@pytest.mark.parametrize(
    "settings", [{"batch_norm": "fixed", "loss": "l1"}, {"batch_norm": "batch", "loss": "mse"}]
)
def test_training_lowers_the_loss(data, tmp_path, settings):
    settings |= {"steps": 60, "validate_every": 15, "crop": 64, "learning_rate": 2e-3}
    pretrain(config(data, tmp_path, **settings))
    losses = [entry["loss"] for entry in entries(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]
    assert losses == sorted(losses, reverse=True)


def test_interpolation_is_a_better_start_than_random_weights(data, tmp_path):
    scores = [
        pretrain(config(data, tmp_path / start, steps=1, start=start))
        for start in ("interpolation", "random")
    ]
    assert scores[0] > scores[1] + 3


def test_init_goes_on_from_a_file(data, uninterrupted, tmp_path):
    init = uninterrupted / SRRESNET_FILE
    settings = {"steps": 1, "learning_rate": 1e-12, "init": init, "generator": GeneratorConfig()}
    pretrain(config(data, tmp_path, **settings))
    before, after = load_file(init), load_file(tmp_path / SRRESNET_FILE)
    for name in before.keys() - {n for n in before if n.endswith("num_batches_tracked")}:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_minutes_end_a_run(data, tmp_path):
    pretrain(config(data, tmp_path, steps=None, minutes=0.01, validate_every=10**6))
    (entry,) = entries(tmp_path)
    assert entry["step"] >= 1
    again = pretrain(config(data, tmp_path, steps=None, minutes=0.01, validate_every=10**6))
    assert len(entries(tmp_path)) == 1  # the time is used up
    assert again == entry["psnr_y"]


def test_measured_statistics_normalize(make_generator):
    generator = make_generator()
    batches = [torch.rand(4, 3, 12, 12) for _ in range(3)]
    measure_batch_norm(generator, batches)
    fix_batch_norm(generator)
    seen = []
    block = generator.blocks[1]
    block.register_forward_pre_hook(lambda _, inputs: seen.append(block.conv1(inputs[0])))
    with torch.no_grad():
        for batch in batches:
            generator(batch)
    norm = block.bn1
    assert not norm.training
    assert norm.momentum == 0.1
    torch.testing.assert_close(
        torch.cat(seen).mean((0, 2, 3)), norm.running_mean, atol=0.05, rtol=0
    )


def test_of_two_processes_one_tells_how_it_goes(data, tmp_path):
    options = {"data": data, "out": tmp_path, "steps": 2, "crop": 16, "batch": 2, "device": "cpu"}
    options |= {"generator.channels": 4, "generator.blocks": 1}
    first, second = launch(2, "train.pretrain", [f"--{k}={v}" for k, v in options.items()])
    assert f"best validation PSNR-Y {entries(tmp_path)[0]['psnr_y']:.2f} dB" in first
    assert "best validation" not in second
    assert "FutureWarning" not in first + second


@pytest.mark.parametrize("length", [{"steps": 100}, {"steps": None, "minutes": 10.0}])
def test_warm_up_takes_a_twentieth_of_a_short_training(data, tmp_path, length):
    """Here of 100 steps or 10 minutes, 6 seconds a step."""
    settings = config(data, tmp_path, warmup=200, **length)
    rates = [settings.rate(step, 6.0 * step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[:6] == sorted(rates[:6])
    assert rates[5] > 0.99
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_long_training_warms_up_for_the_steps_that_were_asked_for(data, tmp_path):
    settings = config(data, tmp_path, warmup=200, steps=10**6)
    rates = [settings.rate(step, 0.0) for step in range(201)]
    assert rates[99] == pytest.approx(0.5, rel=1e-3)
    assert rates[199] == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("steps, ema", [(300, 0.999), (50, 0.5)])
def test_average_leaves_its_start_behind_and_has_the_length_that_was_asked_for(
    data, tmp_path, make_generator, steps, ema
):
    settings = config(data, tmp_path, ema=ema)
    start, generator = make_generator(0), make_generator(1)
    average = moving_average(start)
    for step in range(steps):
        update_average(average, generator, settings.decay(step))
    assert not any(parameter.requires_grad for parameter in average.parameters())
    torch.testing.assert_close(average.state_dict(), generator.state_dict())
    assert settings.decay(10**6) == ema


def test_average_moves_statistics_with_the_weights_and_copies_counters(make_generator):
    start, generator = make_generator(0), make_generator(1)
    generator.bn.num_batches_tracked.fill_(7)
    average = moving_average(start)
    update_average(average, generator, 0.75)
    states = (module.state_dict() for module in (average, start, generator))
    for averaged, before, current in zip(*(state.values() for state in states), strict=True):
        expected = 0.75 * before + 0.25 * current if before.is_floating_point() else current
        torch.testing.assert_close(averaged, expected)


# ------------------------------------------------------------------------------------- resuming


def test_finished_run_is_not_trained_further(data, uninterrupted):
    before = (uninterrupted / LAST_FILE).read_bytes()
    pretrain(config(data, uninterrupted))
    assert (uninterrupted / LAST_FILE).read_bytes() == before
    assert len(entries(uninterrupted)) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_stopped_by_a_signal_resumes_exactly(
    data, uninterrupted, tmp_path, monkeypatch, number
):
    handler = signal.getsignal(number)
    draw, draws = CropSampler.next, []

    def next(sampler):
        draws.append(1)
        if len(draws) == 5 + module.MEASURED_BATCHES:
            os.kill(os.getpid(), number)
        return draw(sampler)

    with monkeypatch.context() as patch:
        patch.setattr(CropSampler, "next", next)
        pretrain(config(data, tmp_path))
    assert [entry["step"] for entry in entries(tmp_path)] == [2, 4, 5]  # finishes its step
    assert signal.getsignal(number) is handler

    pretrain(config(data, tmp_path))
    whole, resumed = entries(uninterrupted), entries(tmp_path)
    assert [entry["step"] for entry in resumed] == [2, 4, 5, 6, 8]
    assert (resumed[0], resumed[1], resumed[4]) == (whole[0], whole[1], whole[3])
    assert_same_state(tmp_path, uninterrupted)


def test_run_killed_while_it_writes_resumes_exactly(data, uninterrupted, tmp_path):
    """SIGKILL in the middle of the checkpoint of step 4 leaves that of step 2."""
    script = f"""
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
from test_pretrain import config, pretrain

torch.set_num_threads({torch.get_num_threads()})
save = torch.save

def save_half(state, file):
    if state["step"] == 4:
        file.write(b"half of a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file)

torch.save = save_half
pretrain(config(Path({str(data)!r}), Path({str(tmp_path)!r})))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load_checkpoint(tmp_path / LAST_FILE)["step"] == 2
    pretrain(config(data, tmp_path))
    assert entries(tmp_path) == entries(uninterrupted)
    assert_same_state(tmp_path, uninterrupted)
    best, expected = (load_file(out / SRRESNET_FILE) for out in (tmp_path, uninterrupted))
    assert_equal(best, expected)
    assert not list(tmp_path.glob("*.part"))


def test_processes_that_share_no_disk_all_resume_from_the_first_ones_checkpoint(data, tmp_path):
    pretrain(config(data, tmp_path / "0", steps=2))
    options = {"data": data, "out": tmp_path / "{rank}", "steps": 4, "crop": 16, "batch": 2}
    options |= {"device": "cpu", "generator.channels": 4, "generator.blocks": 1}
    launch(2, "train.pretrain", [f"--{name}={value}" for name, value in options.items()])
    assert [entry["step"] for entry in entries(tmp_path / "0")] == [2, 4]
    assert not (tmp_path / "1").exists()


# --------------------------------------------------------------------------------------- faults


def test_diverged_run_stops_and_keeps_the_last_good_checkpoint(data, tmp_path):
    pretrain(config(data, tmp_path, steps=2))
    before = [(tmp_path / name).read_bytes() for name in (LAST_FILE, SRRESNET_FILE)]
    message = r"loss is (nan|inf) .* lower --learning-rate.* last good state is in .*last\.pt"
    with pytest.raises(TrainingError, match=message):
        pretrain(config(data, tmp_path, steps=20, learning_rate=1e30))
    assert [(tmp_path / name).read_bytes() for name in (LAST_FILE, SRRESNET_FILE)] == before
    assert len(entries(tmp_path)) == 1


def test_run_whose_validation_diverges_resumes_from_before(
    data, uninterrupted, tmp_path, monkeypatch
):
    """The last step before it goes wrong: no loss has told."""
    update, updates = module.update, []

    def spoil(optimizers, loss, network, clip):
        norm = update(optimizers, loss, network, clip)
        updates.append(1)
        if len(updates) == 4:
            network.head.bias.data.fill_(torch.nan)
        return norm

    with monkeypatch.context() as patch:
        patch.setattr(module, "update", spoil)
        with pytest.raises(TrainingError, match=r"psnr_y is nan in the steps before 4"):
            pretrain(config(data, tmp_path))
    state = load_checkpoint(tmp_path / LAST_FILE)
    assert state["step"] == 2
    for name in ("generator", "average"):
        assert all(value.isfinite().all() for value in state[name].values())
    pretrain(config(data, tmp_path))
    assert entries(tmp_path) == entries(uninterrupted)
    assert_same_state(tmp_path, uninterrupted)


def test_image_that_is_met_exactly_has_a_finite_psnr():
    image = torch.zeros(1, 3, 16, 16)
    assert mean_psnr([(image, image, image), (image, image + 1, image)]) == pytest.approx(
        (100 + psnr_y(image + 1, image)) / 2
    )


@pytest.mark.parametrize("place", ["measure_batch_norm", "mean_psnr", "update"])
def test_memory_that_runs_out_is_explained_wherever_it_does(data, tmp_path, monkeypatch, place):
    def run_out(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, place, run_out)
    with pytest.raises(TrainingError, match="out of GPU memory: lower --batch or --crop"):
        pretrain(config(data, tmp_path))


def test_memory_that_runs_out_in_resuming_is_no_fault_of_the_checkpoint(
    data, tmp_path, monkeypatch
):
    def run_out(*_):
        raise torch.OutOfMemoryError

    pretrain(config(data, tmp_path, steps=2))
    monkeypatch.setattr(CropSampler, "load_state_dict", run_out)
    with pytest.raises(TrainingError, match="out of GPU memory"):
        pretrain(config(data, tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed"),
    ],
)
def test_full_disk_leaves_the_old_checkpoint(data, tmp_path, monkeypatch, error):
    pretrain(config(data, tmp_path, steps=2))
    before = (tmp_path / LAST_FILE).read_bytes()

    def save(state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(CheckpointError, match=r"can't write .*last\.pt: .*last good one is kept"):
        pretrain(config(data, tmp_path))
    assert (tmp_path / LAST_FILE).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_disk_that_is_full_for_tensorboard_first_is_told_with_what_is_kept(
    data, tmp_path, monkeypatch, capsys
):
    """The system refuses to let files grow beyond a size that pictures of validations reach."""
    settings = {"steps": 60, "validate_every": 1, "generator.channels": 4, "generator.blocks": 1}
    settings |= {"data": data, "out": tmp_path, "crop": 16, "batch": 2, "device": "cpu"}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        assert run_main(monkeypatch, *(f"--{k}={v}" for k, v in settings.items())) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert re.fullmatch(
        rf"error: can't write to {tmp_path}: .*File too large.* "
        rf"The last good state is in {tmp_path / LAST_FILE}\.\n",
        error,
    ), error
    step = load_checkpoint(tmp_path / LAST_FILE)["step"]
    assert 1 < step == entries(tmp_path)[-1]["step"] < 60


def test_checkpoints_come_back(tmp_path):
    state = {"a": torch.arange(3), "b": [1, 2.5, "x"], "c": {"d": None}}
    save_checkpoint(state, tmp_path / "a.pt")
    assert_equal(load_checkpoint(tmp_path / "a.pt"), state)


@pytest.mark.parametrize("contents", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_damaged_checkpoint_is_refused(data, tmp_path, contents):
    (tmp_path / LAST_FILE).write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"last\.pt is not a readable checkpoint"):
        pretrain(config(data, tmp_path))
    assert (tmp_path / LAST_FILE).read_bytes() == contents


def test_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "run"),))

    torch.save({"generator": Code()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_network_is_refused(data, uninterrupted):
    before = (uninterrupted / LAST_FILE).read_bytes()
    other = config(data, uninterrupted, generator=GeneratorConfig(channels=5, blocks=1))
    with pytest.raises(CheckpointError, match=r"networks of another size.*another --out"):
        pretrain(other)
    assert (uninterrupted / LAST_FILE).read_bytes() == before


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": None}, "either --steps or --minutes"),
        ({"minutes": 1.0}, "either --steps or --minutes"),
        ({"steps": 0}, "steps must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite, got nan"),
        ({"clip": float("inf")}, "clip must be finite, got inf"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\)"),
        ({"push_every": 5.0}, "push_every needs push_to"),
        ({"push_every": 0.0, "push_to": "user/repo"}, "push_every must be positive"),
        ({"push_to": "repo"}, "push_to must be user/repo or user/repo@branch, got 'repo'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(data, tmp_path, **settings)


# ------------------------------------------------------------------------------ the command line


def run_main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["train.pretrain", *map(str, arguments)])
    return module.main()


def test_muon_has_the_convolutions_between_hidden_layers(data, tmp_path, make_generator):
    generator = make_generator(config=GeneratorConfig(channels=8, blocks=1))
    names = {id(parameter): name for name, parameter in generator.named_parameters()}

    def shares(optimizer: str) -> dict[str, set[str]]:
        settings = config(data, tmp_path, learning_rate=1e-3, optimizer=optimizer)
        optimizers = make_optimizers(settings, generator, torch.device("cpu"))
        return {
            name: {names[id(p)] for group in one.param_groups for p in group["params"]}
            for name, one in optimizers.items()
        }

    hidden = ["blocks.0.conv1", "blocks.0.conv2", "conv", "upsample1.conv", "upsample2.conv"]
    matrices = {f"{name}.weight" for name in hidden}
    everything = set(names.values())
    assert shares("muon") == {"muon": matrices, "adam": everything - matrices}
    assert shares("adam") == {"adam": everything}


def test_batch_and_learning_rate_follow_the_device(tmp_path):
    for kind, expected in (("cpu", (8, 5e-4)), ("cuda", (32, 5e-4))):
        device = torch.device(kind)
        config = PretrainConfig(data=tmp_path, out=tmp_path, steps=1).on(device)
        assert (config.batch, config.learning_rate) == expected
        config = PretrainConfig(data=tmp_path, out=tmp_path, steps=1, batch=3).on(device)
        assert (config.batch, config.learning_rate) == (3, expected[1])


def test_bfloat16_that_a_gpu_emulates_is_not_used(tmp_path, monkeypatch):
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation  # as on a T4

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    config = PretrainConfig(data=tmp_path, out=tmp_path, steps=1)
    assert not use_bf16(config, torch.device("cuda"))


def test_float32_is_no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with join_world("cpu"):
        assert not torch.backends.cudnn.allow_tf32


def test_command_line_trains(data, tmp_path, monkeypatch):
    options = {"steps": 1, "crop": 16, "batch": 1, "device": "cpu", "validation-images": 1}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    size = ["--generator.channels", 4, "--generator.blocks", 1]
    out = tmp_path / "run"
    assert run_main(monkeypatch, "--data", data, "--out", out, *arguments, *size) == 0
    assert load_weights(out / SRRESNET_FILE).srresnet.config == GeneratorConfig(
        channels=4, blocks=1
    )


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--data", "nowhere"], "nowhere is not a prepared dataset: images.bin"),
        (["--crop", 128], "no image has 144 pixels on both sides"),
        (["--init", "none.safetensors"], "none.safetensors is missing"),
        (["--device", "abacus"], "device abacus is not available here"),
        (["--out", "/dev/null/run"], "Not a directory"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, monkeypatch, capsys, arguments, reason):
    options = {"--data": data, "--out": tmp_path / "run", "--steps": 1, "--crop": 16, "--batch": 1}
    options |= {"--generator.channels": 4, "--generator.blocks": 1, "--device": "cpu"}
    options |= dict([arguments])
    assert run_main(monkeypatch, *[part for item in options.items() for part in item]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert reason in line


# ------------------------------------------------------------------------------------- uploading


def test_run_uploads_its_best_weights_whether_the_hub_works_or_not(
    data, uninterrupted, tmp_path, local_hub, monkeypatch, caplog
):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    out = tmp_path / "tiny"
    draw, draws = CropSampler.next, []

    def next(sampler):
        draws.append(1)
        if len(draws) == 3 + module.MEASURED_BATCHES:  # there was a validation
            deadline = time.monotonic() + 20
            while failure not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.02)
            local_hub.fault = None
        return draw(sampler)

    failure = "not uploaded, the training goes on: user/runs can't be pushed to the Hub: "
    local_hub.fault = "500"
    monkeypatch.setattr(CropSampler, "next", next)
    pretrain(config(data, out, push_to="user/runs@dev", push_every=1e-9))
    assert caplog.text.count(failure) == 1
    files = local_hub.files("user/runs", "dev")
    for name in (SRRESNET_FILE, CONFIG_FILE, LOG_FILE):
        assert files[f"runs/tiny/{name}"] == (out / name).read_bytes()
    assert {Path(name).parent.name for name in files} == {"", "tiny"}
    assert entries(out) == entries(uninterrupted)
    assert_same_state(out, uninterrupted)


def test_run_uploads_once_at_its_end_without_push_every(data, tmp_path, local_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    pretrain(config(data, tmp_path / "tiny", push_to="user/runs"))
    assert sum(request.startswith("PUT") for request in local_hub.requests) == 1
    assert len(local_hub.repositories["user/runs"].commits) == 2


def test_run_that_diverges_uploads_what_it_has(data, tmp_path, local_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    pretrain(config(data, tmp_path / "tiny", steps=2))
    settings = {"steps": 20, "learning_rate": 1e30, "push_to": "user/runs"}
    with pytest.raises(TrainingError):
        pretrain(config(data, tmp_path / "tiny", **settings))
    files = local_hub.files("user/runs")
    assert files["runs/tiny/log.jsonl"] == (tmp_path / "tiny" / LOG_FILE).read_bytes()
