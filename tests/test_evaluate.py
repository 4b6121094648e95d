"""Evaluation and the weights folder made from it."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1, vgg19

from srgan import Generator, GeneratorConfig, Upscaler, load_weights, save_weights
from srgan.image import enlarge_bicubic, shrink, to_tensor
from srgan.metrics import psnr_y, ssim_y
from srgan.weights import (
    CONFIG_FILE,
    PHOTO_FILE,
    SRGAN_FILE,
    SRRESNET_FILE,
    load_generator,
    save_generator,
)
from train import loop
from train.evaluate import PAPER, EvaluateConfig, artefact_table, evaluate, table
from train.metrics import LPIPSError, load_lpips
from train.publish import CARD_FILE, BuildConfig, build
from train.vgg import identify

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def dataset(tmp_path):
    """Two smooth images whose sides are no multiples of 4."""
    folder = tmp_path / "Waves"
    folder.mkdir()
    for i, (height, width) in enumerate([(50, 61), (64, 47)]):
        y, x = np.mgrid[:height, :width]
        image = np.stack([127 + 90 * np.sin(x / (3 + k) + y / (5 + i)) for k in range(3)], axis=2)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def generators():
    torch.manual_seed(0)
    first, second = (Generator(GeneratorConfig(channels=4, blocks=1)) for _ in range(2))
    first.initialize_as_interpolation()
    second.initialize_as_interpolation()
    with torch.no_grad():
        second.head.weight += 0.02 * torch.randn_like(second.head.weight)
    return first, second


def test_bicubic_row_is_pillows_bicubic(tmp_path, dataset, generators):
    save_weights(tmp_path / "w", *generators, adversarial=True)
    results = evaluate(
        EvaluateConfig(datasets=[dataset], weights=str(tmp_path / "w"), vgg="none", device="cpu")
    )
    hr = Image.open(dataset / "0.png").crop((0, 0, 60, 48))
    sr = hr.resize((15, 12), Image.BICUBIC).resize((60, 48), Image.BICUBIC)
    measured = results["images"]["Waves"]["0.png"]["bicubic"]
    assert measured["psnr_y"] == pytest.approx(psnr_y(to_tensor(sr), to_tensor(hr)))
    assert measured["ssim_y"] == pytest.approx(ssim_y(to_tensor(sr), to_tensor(hr)))


def test_what_was_measured_with_which_vgg19_is_told(tmp_path, dataset, generators, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    save_weights(tmp_path / "w", *generators, adversarial=True)
    file = tmp_path / "vgg.safetensors"
    features = vgg19(weights=None).features.state_dict()
    save_file({f"features.{name}": value for name, value in features.items()}, file)
    options = {"datasets": [dataset], "weights": str(tmp_path / "w"), "device": "cpu"}
    with_file = evaluate(EvaluateConfig(**options, vgg=str(file)))
    assert with_file["vgg"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert with_file["evaluation"]["Waves"]["bicubic"]["vgg19"] > 0
    assert not torch.backends.cudnn.allow_tf32  # what is called float32 is
    assert evaluate(EvaluateConfig(**options, vgg="none"))["vgg"] is None
    assert identify("torchvision") == "torchvision"


def test_folders_of_one_name_are_refused_before_anything_is_measured(tmp_path):
    folders = [tmp_path / name / "HR" for name in ("Set5", "Set14")]
    with pytest.raises(ValueError, match="2 datasets are called HR"):
        evaluate(EvaluateConfig(datasets=folders, weights="nowhere"))


def test_means_are_over_the_images_and_networks_are_told_apart(tmp_path, dataset, generators):
    save_weights(tmp_path / "w", *generators, adversarial=True)
    results = evaluate(
        EvaluateConfig(datasets=[dataset], weights=str(tmp_path / "w"), vgg="none", device="cpu")
    )
    images = results["images"]["Waves"]
    mean = results["evaluation"]["Waves"]
    for network in ("bicubic", "srresnet", "srgan"):
        values = [images[name][network]["psnr_y"] for name in ("0.png", "1.png")]
        assert mean[network]["psnr_y"] == pytest.approx(sum(values) / 2)
    assert mean["srgan"]["psnr_y"] < mean["srresnet"]["psnr_y"]  # its weights are noisy


def test_self_ensemble_is_measured_under_its_own_name(tmp_path, dataset, generators):
    save_weights(tmp_path / "w", *generators, adversarial=True)
    config = EvaluateConfig(
        datasets=[dataset],
        weights=str(tmp_path / "w"),
        vgg="none",
        device="cpu",
        self_ensemble=True,
    )
    measured = evaluate(config)["images"]["Waves, self-ensemble"]["0.png"]["srgan"]
    hr = Image.open(dataset / "0.png").crop((0, 0, 60, 48))
    sr = Upscaler(tmp_path / "w").upscale(shrink(hr), 1.0, self_ensemble=True)
    assert measured["psnr_y"] == pytest.approx(psnr_y(to_tensor(sr), to_tensor(hr)), abs=0.02)


def test_sheets_show_five_pieces_side_by_side(tmp_path, dataset, generators):
    save_weights(tmp_path / "w", *generators, adversarial=True)
    sheets = tmp_path / "sheets"
    config = EvaluateConfig(
        datasets=[dataset],
        weights=str(tmp_path / "w"),
        vgg="none",
        device="cpu",
        sheets=sheets,
        sheet_crop=32,
    )
    evaluate(config)
    sheet = Image.open(sheets / "Waves-0.png")
    assert sheet.size == (5 * 32 + 4 * 4, 32)
    hr = Image.open(dataset / "0.png").crop((0, 0, 60, 48))
    piece = (14, 8, 46, 40)
    assert sheet.crop((4 * 36, 0, 4 * 36 + 32, 32)).tobytes() == hr.crop(piece).tobytes()
    bicubic = enlarge_bicubic(shrink(hr)).crop(piece)
    assert sheet.crop((36, 0, 68, 32)).tobytes() == bicubic.tobytes()


def test_table_has_the_papers_rows_beside_ours():
    metrics = {"psnr_y": 31.5, "ssim_y": 0.9, "vgg19": 0.25}
    text = table({"Set5": {"srresnet": metrics}})
    assert "| Set5 | SRResNet | 31.50 | 0.9000 | 0.2500 | 32.05 | 0.9019 |" in text
    assert PAPER["Set5"]["srresnet"] == (32.05, 0.9019)


def test_table_shows_lpips_where_it_was_measured():
    metrics = {"psnr_y": 31.5, "ssim_y": 0.9, "vgg19": 0.25, "lpips": 0.125}
    text = table({"Set5": {"srresnet": metrics, "bicubic": {"psnr_y": 28.0, "ssim_y": 0.8}}})
    assert "| VGG19 distance | LPIPS |" in text
    assert "| Set5 | SRResNet | 31.50 | 0.9000 | 0.2500 | 0.1250 | 32.05 | 0.9019 |" in text
    assert "| Set5 | bicubic | 28.00 | 0.8000 | – | – | 28.43 | 0.8211 |" in text


def test_lpips_is_measured_when_its_network_is_there(tmp_path, dataset, generators, monkeypatch):
    name = SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[1]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "hub" / "checkpoints" / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    save_weights(tmp_path / "w", *generators, adversarial=True)
    options = {"weights": str(tmp_path / "w"), "vgg": "none", "lpips": "squeeze", "device": "cpu"}
    results = evaluate(EvaluateConfig(datasets=[dataset], **options))
    for metrics in results["evaluation"]["Waves"].values():
        assert metrics["lpips"] > 0


def test_lpips_without_torchmetrics_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    with pytest.raises(LPIPSError, match="pip install torchmetrics"):
        load_lpips("alex", torch.device("cpu"))


def test_artefacts_are_shown_against_the_original(tmp_path, generators):
    folder = tmp_path / "Noise"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(64, 192, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    save_weights(tmp_path / "w", *generators, adversarial=True)
    options = {"weights": str(tmp_path / "w"), "vgg": "none", "device": "cpu"}
    artefacts = evaluate(EvaluateConfig(datasets=[folder], **options))["artefacts"]
    lr = shrink(Image.open(folder / "0.png"))
    for detail, network in ((0.0, "srresnet"), (1.0, "srgan")):
        sr = np.asarray(Upscaler(tmp_path / "w", "cpu").upscale(lr, detail), np.float64)
        expected = np.abs((sr - pixels).mean((0, 1))).max()
        assert artefacts["Noise"][network]["color_shift"] == pytest.approx(expected, abs=0.01)
    shown = artefacts["Noise"]["srgan"]
    row = f"{shown['color_shift']:.2f} | {shown['checkerboard']:.1f} | {shown['strokes']:.1f}"
    assert f"| Noise | SRGAN | {row} |" in artefact_table(artefacts)


def test_empty_dataset_is_named(tmp_path, generators):
    save_weights(tmp_path / "w", *generators, adversarial=True)
    (tmp_path / "empty").mkdir()
    arguments = ["--weights", str(tmp_path / "w"), "--vgg", "none", str(tmp_path / "empty")]
    result = subprocess.run(
        [sys.executable, "-m", "train.evaluate", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.strip().endswith("empty holds no images")


@pytest.fixture
def runs(tmp_path, generators):
    """The folders of a finished run of each stage."""
    names = {"srresnet": SRRESNET_FILE, "srgan": SRGAN_FILE}
    for generator, (stage, name) in zip(generators, names.items(), strict=True):
        folder = tmp_path / "runs" / stage
        folder.mkdir(parents=True)
        save_generator(generator, folder / name)
        settings = {"data": "/secret/path", "batch": 8, "minutes": 10}
        (folder / loop.CONFIG_FILE).write_text(json.dumps(settings))
        entry = {"step": 1234, "seconds": 600}
        (folder / loop.LOG_FILE).write_text(json.dumps(entry) + "\n")
    return tmp_path / "runs"


def test_weights_folder_round_trip_with_evaluation(tmp_path, dataset, runs):
    options = {
        "out": tmp_path / "out",
        "srresnet": runs / "srresnet",
        "srgan": runs / "srgan",
        "detail": 0.8,
    }
    build(BuildConfig(**options))
    results = evaluate(
        EvaluateConfig(datasets=[dataset], weights=str(tmp_path / "out"), vgg="none")
    )
    (tmp_path / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (80, 16)).save(tmp_path / "sheet.png")
    build(
        BuildConfig(
            **options,
            evaluations=(tmp_path / "results.json",),
            comparison=tmp_path / "sheet.png",
        )
    )

    weights = load_weights(tmp_path / "out")
    assert weights.adversarial
    assert weights.detail == 0.8
    assert weights.evaluation == results["evaluation"]
    text = (tmp_path / "out" / CARD_FILE).read_text(encoding="utf-8")
    assert table(results["evaluation"]) in text
    assert "1,234 steps in 10 minutes" in text
    assert "](comparison.png)" in text
    assert (tmp_path / "out" / "comparison.png").exists()
    assert "secret" not in text + (tmp_path / "out" / CONFIG_FILE).read_text()
    card = ModelCard(text)
    assert card.data.license == "mit"
    psnr = results["evaluation"]["Waves"]["srgan"]["psnr_y"]
    assert round(psnr, 4) in [result.metric_value for result in card.data.eval_results]


def test_the_step_of_the_best_weights_is_told(tmp_path, runs):
    for stage, name, step in (("srresnet", SRRESNET_FILE, 1234), ("srgan", SRGAN_FILE, 1000)):
        file = runs / stage / name
        save_generator(load_generator(file), file, {"step": str(step)})
    build(BuildConfig(out=tmp_path / "out", srresnet=runs / "srresnet", srgan=runs / "srgan"))
    training = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())["training"]
    assert [training[stage]["weights_step"] for stage in ("srresnet", "srgan")] == [1234, 1000]
    text = (tmp_path / "out" / CARD_FILE).read_text(encoding="utf-8")
    assert "- SRResNet: 1,234 steps in 10 minutes, with batch 8" in text
    assert "- SRGAN: 1,234 steps in 10 minutes, the weights those of step 1,000, with" in text


def test_settings_that_json_does_not_know_are_not_published(tmp_path, runs):
    (runs / "srresnet" / loop.CONFIG_FILE).write_text('{"clip": Infinity}')
    with pytest.raises(ValueError, match="JSON"):
        build(BuildConfig(out=tmp_path / "out", srresnet=runs / "srresnet"))
    assert "Infinity" not in (tmp_path / "out" / CONFIG_FILE).read_text()


def test_without_the_adversarial_stage_config_and_card_say_so(tmp_path, runs):
    build(BuildConfig(out=tmp_path / "out", srresnet=runs / "srresnet"))
    weights = load_weights(tmp_path / "out")
    assert not weights.adversarial
    assert "adversarial stage" in weights.notices[0]
    text = (tmp_path / "out" / CARD_FILE).read_text(encoding="utf-8")
    assert "adversarial stage has not been run" in text
    assert "Not measured yet" in text


def test_evaluation_of_other_weights_is_refused(tmp_path, dataset, runs):
    build(BuildConfig(out=tmp_path / "out", srresnet=runs / "srresnet"))
    results = evaluate(
        EvaluateConfig(datasets=[dataset], weights=str(tmp_path / "out"), vgg="none")
    )
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="other weights"):
        build(
            BuildConfig(
                out=tmp_path / "out",
                srresnet=runs / "srresnet",
                srgan=runs / "srgan",
                evaluations=(tmp_path / "results.json",),
            )
        )


def test_degraded_photographs_are_the_same_each_time(tmp_path, dataset, generators):
    save_weights(tmp_path / "w", *generators, photo=generators[0], adversarial=True)
    options = {"weights": str(tmp_path / "w"), "vgg": "none", "device": "cpu"}
    config = EvaluateConfig(datasets=[dataset], degradation="photo", **options)
    results = evaluate(config)["evaluation"]
    assert evaluate(config)["evaluation"] == results
    degraded = results["Waves, photo"]
    assert list(degraded) == ["bicubic", "srresnet", "srgan", "photo"]
    # Here the same network, but not back-projected.
    assert degraded["photo"]["psnr_y"] < degraded["srresnet"]["psnr_y"]
    clean = evaluate(EvaluateConfig(datasets=[dataset], **options))["evaluation"]["Waves"]
    assert list(clean) == ["bicubic", "srresnet", "srgan"]
    assert clean["bicubic"]["psnr_y"] > degraded["bicubic"]["psnr_y"]
    assert "| Waves, photo | SRGAN photo |" in table(results)


def test_photo_weights_join_a_folder_that_was_measured_before(tmp_path, dataset, runs):
    out, options = tmp_path / "out", {"vgg": "none", "device": "cpu"}
    config = BuildConfig(out=out, srresnet=runs / "srresnet", srgan=runs / "srgan")
    build(config)
    files, evaluation = [], {}
    for degradation in ("bicubic", "photo"):
        measured = evaluate(
            EvaluateConfig(datasets=[dataset], weights=str(out), degradation=degradation, **options)
        )
        files.append(tmp_path / f"{degradation}.json")
        files[-1].write_text(json.dumps(measured))
        evaluation |= measured["evaluation"]
        config = replace(config, photo=runs / "srgan", evaluations=tuple(files))
        build(config)
    weights = load_weights(out)
    assert weights.evaluation == evaluation
    assert list(evaluation["Waves, photo"]) == ["bicubic", "srresnet", "srgan", "photo"]
    assert weights.photo is not None
    assert PHOTO_FILE in weights.checksums
    text = (out / CARD_FILE).read_text(encoding="utf-8")
    assert f"`{PHOTO_FILE}` is for photographs" in text
    assert text.count("1,234 steps in 10 minutes") == 3
    assert table(evaluation) in text
