"""Stage 2 on tiny networks, and training in two processes."""

import contextlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import vgg19

from srgan.back_projection import back_project
from srgan.generator import Generator, GeneratorConfig
from srgan.weights import SRGAN_FILE, SRRESNET_FILE, save_generator
from tests.runs import assert_same_state, entries
from tests.torchrun import launch
from train import adversarial as stage
from train import losses
from train.adversarial import AdversarialConfig, PaperConfig, adversarial
from train.checkpoint import LAST_FILE
from train.discriminator import Discriminator
from train.loop import CONFIG_FILE, TrainingError, center_colors, fix_batch_norm, update

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory):
    """What all runs here have in common: tiny networks, and VGG19 with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("init")
    generator = Generator(GeneratorConfig(channels=4, blocks=1))
    generator.initialize_as_interpolation()
    save_generator(generator, folder / SRRESNET_FILE)
    features = vgg19(weights=None).features.state_dict()
    save_file({f"features.{k}": v for k, v in features.items()}, folder / "vgg.safetensors")
    return {
        "data": data,
        "init": folder / SRRESNET_FILE,
        "vgg": str(folder / "vgg.safetensors"),
        "crop": 32,
        "batch": 2,
        "warmup": 1,
        "discriminator_width": 0.05,
        "precision": "float32",
        "device": "cpu",
        "validate_every": 2,
    }


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("preset", [AdversarialConfig, PaperConfig])
def test_both_presets_train_and_write_weights(tmp_path, settings, preset, precision):
    config = preset(**{**settings, "precision": precision}, out=tmp_path, steps=2)
    distance = adversarial(config)
    (entry,) = entries(tmp_path)
    json.loads((tmp_path / CONFIG_FILE).read_text(), parse_constant=pytest.fail)
    assert distance == pytest.approx(entry["vgg19"])
    assert entry["step"] == 2
    before, after = load_file(settings["init"]), load_file(tmp_path / SRGAN_FILE)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_colors_are_centered_by_the_head_alone(make_generator):
    generator = make_generator(seed=1).eval()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    lr, hr = torch.rand(4, 3, 6, 6), torch.rand(4, 3, 24, 24)
    center_colors(generator, [(lr[:2], hr[:2]), (lr[2:], hr[2:])])
    with torch.no_grad():
        torch.testing.assert_close(generator(lr).mean((0, 2, 3)), hr.mean((0, 2, 3)))
    after = generator.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.bias"]


def test_weights_are_saved_with_centered_colors(tmp_path, settings, monkeypatch):
    shift = 0.25
    monkeypatch.setattr(
        "train.adversarial.center_colors", lambda network, _: network.head.bias.data.add_(shift)
    )
    adversarial(AdversarialConfig(**settings, out=tmp_path, steps=2))
    average = torch.load(tmp_path / LAST_FILE, weights_only=True)["average"]["head.bias"]
    saved = load_file(tmp_path / SRGAN_FILE)["head.bias"]
    torch.testing.assert_close(saved, average + shift)


@pytest.mark.parametrize("perceptual", ["normalized", "relative", "paper"])
def test_every_option_takes_part(tmp_path, settings, perceptual):
    names = ("perceptual", "pixel", "stationarity", "spectrum", "adversarial", "feature_matching")
    weights = dict(zip(names, (1.0, 0.5, 20.0, 0.3, 0.01, 0.1), strict=True))
    options = {
        **{f"{loss}_weight": weight for loss, weight in weights.items()},
        "r1": 1.0,
        "normalization": "none",
        "batch_norm": "batch",
        "relativistic": False,
        "perceptual": perceptual,
        "perceptual_layers": {"relu2_2": 1.0},
    }
    adversarial(AdversarialConfig(**settings, **options, out=tmp_path, steps=2))
    (entry,) = entries(tmp_path)
    assert all(math.isfinite(value) for value in entry.values())
    total = sum(weight * entry[loss] for loss, weight in weights.items())
    assert entry["loss"] == pytest.approx(total, rel=1e-4)


@contextlib.contextmanager
def cuda_autocast(*_):
    """What `torch.autocast` does on a machine that has CUDA, to bfloat16."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before)


@pytest.mark.parametrize("normalization", ["spectral", "batch", "none"])
@pytest.mark.parametrize("perceptual", ["normalized", "relative", "paper"])
def test_losses_fit_a_gpus_devices_and_precisions(monkeypatch, perceptual, normalization):
    """On tensors that have a device, a type and a shape, but no values."""
    monkeypatch.setattr(stage, "autocast", cuda_autocast)
    monkeypatch.setattr(losses, "_binomial", losses._binomial.__wrapped__)  # keeps nothing
    options = {"perceptual": perceptual, "feature_matching_weight": 1.0}
    config = AdversarialConfig(data=Path(), out=Path(), init=Path(), steps=1, **options)
    with FakeTensorMode():
        with torch.device("cuda"):
            generator = Generator(GeneratorConfig(channels=8, blocks=1), reindexed_head=True)
            fix_batch_norm(generator)
            discriminator = Discriminator(32, normalization=normalization, width=0.125)
            features = torch.nn.Conv2d(3, 8, 3)  # instead of VGG19's
            lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
        with cuda_autocast():
            sr = generator(lr)
            real, fake = discriminator(hr), discriminator(sr.float())
        assert sr.dtype == real[0].dtype == fake[1][0].dtype == torch.bfloat16
        values = stage.generator_losses(
            config,
            lambda images, layers: [features(images) for _ in layers],
            sr.float(),
            config.finish(sr.float(), lr),
            hr,
            (sr.float(), hr),
            real,
            fake,
        )
        logits = real[0].float(), fake[0].float()
        values["discriminator"] = losses.discriminator_loss(*logits, relativistic=True)
        for value in values.values():
            assert (value.device.type, value.dtype, value.shape) == ("cuda", torch.float32, ())


@pytest.mark.parametrize("degradation, judged", [("bicubic", True), ("photo", False)])
def test_what_is_judged_is_what_users_get(tmp_path, settings, degradation, judged):
    options = {**settings, "out": tmp_path, "steps": 1, "degradation": degradation}
    lr, sr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32, requires_grad=True)
    expected = sr.detach().clone()
    if judged:
        back_project(expected, lr)
    config = AdversarialConfig(**options)
    result = config.finish(sr, lr)
    assert torch.equal(result, expected)
    assert result.requires_grad
    assert torch.allclose(config.finish(sr + 0.1, lr), result, atol=1e-5) == judged  # no casts
    assert AdversarialConfig(**options, back_projection=False).finish(sr, lr) is sr
    assert PaperConfig(**options).finish(sr, lr) is sr


@pytest.mark.parametrize("shift", [-1, 17])
def test_vgg_is_shown_enough(tmp_path, settings, shift):
    with pytest.raises(ValueError, match="perceptual_shift must leave VGG 16 of the crop's 32"):
        AdversarialConfig(**settings, out=tmp_path, steps=1, perceptual_shift=shift)


def test_resumed_run_matches_uninterrupted_run(tmp_path, settings):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    adversarial(AdversarialConfig(**settings, out=whole, steps=4))
    program = (
        "import os, signal, sys\n"
        "import train.adversarial as stage\n"
        "update, calls = stage.update, []\n"
        "def counted(*arguments):\n"
        "    calls.append(None)\n"
        "    if len(calls) == 6:  # in the third step: a checkpoint of the second is there\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return update(*arguments)\n"
        "stage.update = counted\n"
        "sys.argv = ['adversarial', 'ours', *sys.argv[1:]]\n"
        "stage.main()\n"
    )
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    killed = subprocess.run(
        [sys.executable, "-c", program, *arguments, f"--out={parts}", "--steps=4"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        timeout=300,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert [entry["step"] for entry in entries(parts)] == [2]
    adversarial(AdversarialConfig(**settings, out=parts, steps=4))

    assert entries(parts) == entries(whole)
    assert_same_state(parts, whole)


def test_diverged_run_stops_with_its_cause_and_keeps_the_checkpoint(tmp_path, settings):
    config = AdversarialConfig(**settings, out=tmp_path, steps=2)
    adversarial(config)
    good = (tmp_path / LAST_FILE).read_bytes()
    state = torch.load(tmp_path / LAST_FILE, weights_only=True)
    state["generator"]["head.bias"].fill_(math.nan)
    torch.save(state, tmp_path / LAST_FILE)
    spoilt = (tmp_path / LAST_FILE).read_bytes()
    with pytest.raises(TrainingError, match=r"is nan in the steps before 4.*learning-rate"):
        adversarial(AdversarialConfig(**settings, out=tmp_path, steps=4))
    assert (tmp_path / LAST_FILE).read_bytes() == spoilt != good


def test_discriminator_that_diverges_in_the_last_step_is_not_kept(tmp_path, settings, monkeypatch):
    def spoil(optimizers, loss, network, clip):
        return update(optimizers, loss * math.nan if len(optimizers) == 1 else loss, network, clip)

    adversarial(AdversarialConfig(**settings, out=tmp_path, steps=2))
    good = (tmp_path / LAST_FILE).read_bytes()
    monkeypatch.setattr("train.adversarial.update", spoil)
    with pytest.raises(TrainingError, match="discriminator_gradient_norm is nan in the steps"):
        adversarial(AdversarialConfig(**settings, out=tmp_path, steps=3))
    assert (tmp_path / LAST_FILE).read_bytes() == good


@pytest.mark.parametrize(
    "layers, reason",
    [
        ({"relu9_9": 1.0}, "relu9_9"),
        ({"relu1_2": 1.0, "relu2_2": -1.0}, "at least 0"),
        ({"relu1_2": 0.0}, "not all of them 0"),
        ({}, "not all of them 0"),
    ],
)
def test_layers_that_make_no_loss_are_refused(tmp_path, settings, layers, reason):
    settings = {**settings, "perceptual_layers": layers}
    with pytest.raises(ValueError, match=reason):
        AdversarialConfig(**settings, out=tmp_path, steps=2)


def test_command_line_fails_with_one_line(tmp_path, settings):
    arguments = [f"--data={settings['data']}", f"--init={settings['init']}", "--vgg=absent"]
    arguments += [f"--out={tmp_path}", "--steps=2", "--crop=32"]
    result = subprocess.run(
        [sys.executable, "-m", "train.adversarial", "paper", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: absent is not a readable")


def train_in_one_and_in_two(tmp_path, module, arguments):
    """The checkpoints of the same run in one process and in two with half of each batch."""
    for processes in (1, 2):
        launch(processes, module, [*arguments, f"--out={tmp_path / str(processes)}"])
    return (torch.load(tmp_path / name / LAST_FILE, weights_only=True) for name in ("1", "2"))


def assert_same_gradients(one, two):
    """Both optimisers take out the gradient's size, so what they have seen of them counts."""
    assert len(one["state"]) == len(two["state"]) > 0
    for number, state in one["state"].items():
        name = "exp_avg" if "exp_avg" in state else "mean"
        assert torch.allclose(state[name], two["state"][number][name], rtol=1e-3, atol=1e-7)


def test_two_processes_with_half_the_batch_train_like_one(tmp_path, data):
    arguments = [
        f"--data={data}",
        "--steps=3",
        "--crop=32",
        "--batch=4",
        "--warmup=1",
        "--precision=float32",
        "--device=cpu",
        "--generator.channels=4",
        "--generator.blocks=1",
    ]
    one, two = train_in_one_and_in_two(tmp_path, "train.pretrain", arguments)
    assert_same_gradients(one["adam"], two["adam"])
    assert_same_gradients(one["muon"], two["muon"])
    assert torch.equal(one["sampler"]["random"], two["sampler"]["random"])


def test_two_processes_play_against_the_whole_batch(tmp_path, settings):
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    arguments += ["--steps=1", "--r1=1"]
    one, two = train_in_one_and_in_two(tmp_path, "train.adversarial", ["ours", *arguments])
    assert_same_gradients(one["adam"], two["adam"])
    assert_same_gradients(one["muon"], two["muon"])
    assert_same_gradients(one["discriminator_optimizer"], two["discriminator_optimizer"])


def test_two_processes_run_the_adversarial_stage(tmp_path, settings):
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    out = tmp_path / "run"
    launch(2, "train.adversarial", ["ours", *arguments, f"--out={out}", "--steps=2"])
    assert [entry["step"] for entry in entries(out)] == [2]
    # The world may change between runs.
    adversarial(AdversarialConfig(**settings, out=out, steps=4))
    assert [entry["step"] for entry in entries(out)] == [2, 4]
