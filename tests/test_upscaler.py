import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srgan import Cancelled, ImageError, Upscaler, WeightsError, int8, save_weights, tiling
from srgan import upscaler as module
from srgan import weights as weights_module
from srgan.back_projection import back_project
from srgan.generator import InferenceGenerator, fold
from srgan.image import to_tensor
from srgan.int8 import Int8Generator, calibrate
from srgan.upscaler import CACHED_NETWORKS, LEAST_LIKENESS
from srgan.weights import PHOTO_FILE, SRGAN_FILE, load_weights

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def upscaler(tiny_weights):
    return Upscaler(tiny_weights, "cpu")


@pytest.fixture(scope="module")
def photo_upscaler(tiny_photo_weights):
    """With the model photo."""
    return Upscaler(tiny_photo_weights, "cpu")


def photo(seed: int = 0, size: tuple[int, int] = (23, 17), mode: str = "RGB") -> Image.Image:
    """A smooth random picture."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 4), np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype("<u2") * 257)
    return image.convert("RGB").convert(mode) if mode == "P" else image.convert(mode)


def distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean())


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    "mode, result",
    [
        ("RGB", "RGB"),
        ("L", "L"),
        ("LA", "LA"),
        ("RGBA", "RGBA"),
        ("P", "RGB"),
        ("1", "L"),
        ("I;16", "I;16"),
        ("CMYK", "RGB"),
    ],
)
def test_every_mode_becomes_four_times_as_large(upscaler, mode, result):
    image = photo(mode=mode)
    large = upscaler.upscale(image)
    assert large.size == (92, 68)
    assert large.mode == result
    assert len(np.unique(large)) > 2


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (61, 2)])
def test_small_and_odd_sizes(upscaler, size):
    assert upscaler.upscale(photo(size=size)).size == (4 * size[0], 4 * size[1])


def test_image_given_is_not_changed(upscaler):
    image = photo(mode="RGBA")
    before = image.copy()
    upscaler.upscale(image)
    assert same(image, before)


# --------------------------------------------------------------------------------------- detail


@pytest.mark.parametrize("detail, network", [(0, "srresnet"), (1, "srgan")])
def test_ends_of_detail_are_exactly_the_two_networks(upscaler, tiny_weights, detail, network):
    """Back-projected."""
    generator = InferenceGenerator(fold(getattr(load_weights(tiny_weights), network)))
    lr = to_tensor(photo())
    with torch.inference_mode():
        expected = generator(lr)
        back_project(expected, lr)
    torch.testing.assert_close(upscaler.enlarge(lr, detail), expected, rtol=0, atol=1e-5)


def test_half_detail_lies_between(upscaler):
    faithful, half, textured = (upscaler.upscale(photo(), d) for d in (0.0, 0.5, 1.0))
    assert 0 < distance(half, faithful) < distance(textured, faithful)
    assert 0 < distance(half, textured) < distance(textured, faithful)


def test_default_detail_is_the_recommended_one(upscaler):
    assert upscaler.default_detail == 0.75
    assert same(upscaler.upscale(photo()), upscaler.upscale(photo(), 0.75))
    assert not same(upscaler.upscale(photo()), upscaler.upscale(photo(), 1))


@pytest.mark.parametrize("detail", [-0.01, 1.01, float("nan"), float("inf")])
def test_detail_outside_its_range_is_refused(upscaler, detail):
    with pytest.raises(ValueError, match=r"detail must be in \[0, 1\]"):
        upscaler.upscale(photo(), detail)


def test_many_details_do_not_fill_the_memory(tiny_weights):
    upscaler = Upscaler(tiny_weights, "cpu")
    first = upscaler.upscale(photo(), 0.0)
    for detail in np.linspace(0.1, 0.9, 3 * CACHED_NETWORKS):
        upscaler.upscale(photo(size=(2, 2)), float(detail))
    assert len(upscaler._networks) <= CACHED_NETWORKS
    assert same(upscaler.upscale(photo(), 0.0), first)


# -------------------------------------------------------------------------------- self-ensemble


def test_self_ensemble_does_not_care_how_the_image_is_turned(upscaler):
    lr = to_tensor(photo())
    expected = upscaler.enlarge(lr, self_ensemble=True)
    for turn in (lambda x: x.flip(3), lambda x: x.rot90(1, (2, 3))):
        turned = upscaler.enlarge(turn(lr), self_ensemble=True)
        torch.testing.assert_close(turned, turn(expected), rtol=0, atol=1e-5)
        assert (upscaler.enlarge(turn(lr)) - turn(upscaler.enlarge(lr))).abs().max() > 0.01


def test_self_ensemble_is_a_mean_with_the_plain_result_among_it(upscaler):
    lr = to_tensor(photo())
    mean, plain = upscaler.enlarge(lr, self_ensemble=True), upscaler.enlarge(lr)
    others = [upscaler.enlarge(lr.flip(axes)).flip(axes) for axes in ((2,), (3,), (2, 3))]
    for axes in ((), (2,), (3,), (2, 3)):
        others.append(upscaler.enlarge(lr.mT.flip(axes)).flip(axes).mT)
    torch.testing.assert_close(mean, sum(others, plain) / 8, rtol=0, atol=1e-5)


def test_progress_of_a_self_ensemble_goes_once_from_0_to_1(upscaler):
    shares = []
    upscaler.upscale(photo(), progress=shares.append, self_ensemble=True)
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == pytest.approx(1)


# ---------------------------------------------------------------------------------------- model


def test_photo_is_exactly_its_network_whatever_the_detail(photo_upscaler):
    assert photo_upscaler.models == ("clean", "photo")
    generator = InferenceGenerator(fold(photo_upscaler.weights.photo))
    lr = to_tensor(photo())
    with torch.inference_mode():
        expected = generator(lr)
    for detail in (None, 0, 0.5, 1):
        enlarged = photo_upscaler.enlarge(lr, detail, model="photo")
        torch.testing.assert_close(enlarged, expected, rtol=0, atol=1e-5)
    assert [key for key in photo_upscaler._networks if key[0] == "photo"] == [("photo", 0.0)]


def test_clean_is_the_default_and_the_same_with_photo_beside_it(photo_upscaler, upscaler):
    expected = upscaler.upscale(photo())
    assert same(photo_upscaler.upscale(photo()), expected)
    assert same(photo_upscaler.upscale(photo(), model="clean"), expected)


def test_models_that_are_not_there_are_refused(upscaler, photo_upscaler):
    assert upscaler.models == ("clean",)
    with pytest.raises(ValueError, match=r"the weights have \(clean\), got 'photo'"):
        upscaler.upscale(photo(), model="photo")
    with pytest.raises(ValueError, match=r"the weights have \(clean, photo\), got 'dirty'"):
        photo_upscaler.upscale(photo(), model="dirty")


def test_a_lone_file_is_clean(tiny_photo_weights):
    assert Upscaler(tiny_photo_weights / PHOTO_FILE, "cpu").models == ("clean",)


def test_detail_has_no_effect_without_adversarial_stage(make_generator, tmp_path):
    save_weights(tmp_path, make_generator(1), make_generator(2), adversarial=False)
    upscaler = Upscaler(tmp_path, "cpu")
    assert same(upscaler.upscale(photo(), 0.0), upscaler.upscale(photo(), 1.0))


@pytest.mark.parametrize("device, ready", [("cpu", ["clean"]), ("meta", ["clean", "photo"])])
def test_what_a_gpu_computes_is_there_at_the_start(tiny_photo_weights, device, ready):
    upscaler = Upscaler(tiny_photo_weights, device, precision="float32")
    assert [model for model, _ in upscaler._networks] == ready


# ---------------------------------------------------------------------------------- statelessness


def test_results_do_not_depend_on_other_calls_at_the_same_time(tiny_weights):
    jobs = [
        (photo(seed, (9 + seed, 20 - seed), mode), seed % 5 / 4)
        for seed in range(6)
        for mode in ("RGB", "LA")
    ]
    serial = [Upscaler(tiny_weights, "cpu").upscale(*job) for job in jobs]
    shared = Upscaler(tiny_weights, "cpu")
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: shared.upscale(*job), jobs + jobs[::-1]))
    assert all(map(same, parallel, serial + serial[::-1]))


def test_tiles_do_not_change_the_result(tiny_weights, upscaler):
    tiled = Upscaler(tiny_weights, "cpu", tile=5).upscale(photo(size=(31, 22)))
    whole = upscaler.upscale(photo(size=(31, 22)))
    # 1e-5 can decide how a value is rounded.
    assert np.abs(np.asarray(tiled).astype(int) - np.asarray(whole)).max() <= 1


# -------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_progress_comes_on_the_calling_thread_and_ends_at_one(upscaler, mode):
    calls = []
    upscaler.upscale(photo(mode=mode), progress=lambda f: calls.append((f, threading.get_ident())))
    fractions, threads = zip(*calls, strict=True)
    assert fractions == tuple(sorted(fractions))
    assert fractions[0] > 0
    assert fractions[-1] == 1
    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("error", [Cancelled("enough"), RuntimeError("mine"), KeyboardInterrupt()])
def test_what_progress_raises_comes_out(upscaler, error):
    expected = upscaler.upscale(photo())

    def stop(fraction):
        raise error

    with pytest.raises(type(error)) as caught:
        upscaler.upscale(photo(), progress=stop)
    assert caught.value is error
    assert same(upscaler.upscale(photo()), expected)


# ---------------------------------------------------------------------------------------- limits


def test_too_large_images_are_refused(tiny_weights, monkeypatch):
    upscaler = Upscaler(tiny_weights, "cpu", max_pixels=100)
    assert upscaler.upscale(photo(size=(10, 10))).size == (40, 40)
    with pytest.raises(ImageError, match="limit is 100"):
        upscaler.upscale(photo(size=(101, 1)))
    monkeypatch.setenv("SRGAN_MAX_PIXELS", "99")
    assert Upscaler(tiny_weights, "cpu").max_pixels == 99


def test_empty_images_are_refused(upscaler):
    with pytest.raises(ImageError, match="empty"):
        upscaler.upscale(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to …"),
    ],
)
def test_lack_of_memory_is_told_in_a_sentence(upscaler, monkeypatch, error):
    def enlarge_tiled(*_, **__):
        raise error

    monkeypatch.setattr(module, "enlarge_tiled", enlarge_tiled)
    with pytest.raises(ImageError, match=r"Not enough memory on cpu for 23 × 17 .*smaller image"):
        upscaler.upscale(photo())


def test_smaller_tiles_where_memory_does_not_suffice(upscaler, monkeypatch):
    image, tried = photo(size=(150, 90)), []
    expected = upscaler.upscale(image)

    def enlarge_tiled(*arguments, body_tile, tail_tile, **options):
        tried.append((body_tile, tail_tile))
        if body_tile > 40:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return tiling.enlarge_tiled(*arguments, body_tile=body_tile, tail_tile=tail_tile, **options)

    monkeypatch.setattr(module, "enlarge_tiled", enlarge_tiled)
    result = upscaler.upscale(image)
    assert tried == [(944, 64), (75, 64), (37, 37)]
    assert np.abs(np.asarray(result).astype(int) - np.asarray(expected)).max() <= 1


def test_other_errors_are_not_tried_again(upscaler, monkeypatch):
    tried = []

    def enlarge_tiled(*_, **__):
        tried.append(1)
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "enlarge_tiled", enlarge_tiled)
    with pytest.raises(RuntimeError, match="a bug"):
        upscaler.upscale(photo())
    assert len(tried) == 1


# ------------------------------------------------------------------------------------ precision


def test_float32_and_int8_are_chosen_by_name(monkeypatch):
    monkeypatch.setattr(int8, "available", lambda: True)
    image = Image.open(EXAMPLES / "cat.png").crop((20, 30, 68, 70))
    results = []
    for precision in ("float32", "int8"):
        upscaler = Upscaler(device="cpu", precision=precision)
        assert upscaler.precision == upscaler.info()["precision"] == precision
        results.append(upscaler.upscale(image))
    assert not same(*results)
    assert distance(*results) < 0.8  # of 255


def test_precision_comes_from_the_environment_too(tiny_weights, monkeypatch):
    monkeypatch.setattr(int8, "available", lambda: True)
    monkeypatch.setenv("SRGAN_PRECISION", "int8")
    assert Upscaler(tiny_weights, "cpu").precision == "int8"
    assert Upscaler(tiny_weights, "cpu", precision="float32").precision == "float32"


@pytest.mark.parametrize("fast, precision", [(True, "int8"), (False, "float32")])
def test_auto_takes_int8_where_it_is_fast(monkeypatch, fast, precision):
    monkeypatch.setattr(int8, "available", lambda: fast)
    assert Upscaler(device="cpu", precision="auto").precision == precision


@pytest.mark.parametrize("wanted, precision", [("auto", "float32"), ("int8", "int8")])
def test_only_auto_minds_what_int8_loses(tiny_weights, monkeypatch, wanted, precision):
    monkeypatch.setattr(int8, "available", lambda: True)
    monkeypatch.setattr(
        int8, "calibrate", lambda *given, **how: (calibrate(*given, **how)[0], LEAST_LIKENESS - 0.1)
    )
    assert Upscaler(tiny_weights, "cpu", precision=wanted).precision == precision


def test_int8_measures_both_ends_of_detail(tiny_weights, monkeypatch):
    monkeypatch.setattr(int8, "available", lambda: True)
    upscaler = Upscaler(tiny_weights, "cpu", precision="int8")
    ends = [fold(upscaler.weights.srresnet), fold(upscaler.weights.srgan)]
    ranges = upscaler._ranges["clean"]
    images = module._calibration_images()
    assert len(images) >= 6
    for end in ends:
        for name, (low, high) in calibrate([end], images)[0].items():
            assert (ranges[name][0] <= low).all() and (high <= ranges[name][1]).all()


def test_int8_measures_photo_at_its_first_image(tiny_photo_weights, monkeypatch):
    monkeypatch.setattr(int8, "available", lambda: True)
    upscaler = Upscaler(tiny_photo_weights, "cpu", precision="int8")
    assert list(upscaler._ranges) == ["clean"]
    result = upscaler.upscale(photo(), model="photo")
    ranges, _ = calibrate([fold(upscaler.weights.photo)], module._calibration_images())
    photo_ranges, clean_ranges = (upscaler._ranges[model] for model in ("photo", "clean"))
    torch.testing.assert_close(photo_ranges, ranges)
    assert (photo_ranges["head"][1] != clean_ranges["head"][1]).any()
    upscaler._networks.clear()  # as many details would
    monkeypatch.setattr(int8, "calibrate", None)
    assert same(upscaler.upscale(photo(), model="photo"), result)


@pytest.mark.parametrize("wanted, lost", [("auto", True), ("int8", False)])
def test_what_int8_loses_of_photo_is_no_matter_to_clean(
    tiny_photo_weights, photo_upscaler, monkeypatch, wanted, lost
):
    monkeypatch.setattr(int8, "available", lambda: True)
    likenesses = [LEAST_LIKENESS, LEAST_LIKENESS - 0.1]
    monkeypatch.setattr(
        int8, "calibrate", lambda *given, **how: (calibrate(*given, **how)[0], likenesses.pop(0))
    )
    upscaler = Upscaler(tiny_photo_weights, "cpu", precision=wanted)
    in_float32 = photo_upscaler.upscale(photo(), model="photo")
    assert same(upscaler.upscale(photo(), model="photo"), in_float32) == lost
    assert upscaler.precision == "int8"
    assert isinstance(upscaler._network("clean", 0.75), Int8Generator)


def test_int8_needs_its_photographs(tiny_weights, monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "available", lambda: True)
    monkeypatch.setattr(module, "CALIBRATION_FOLDER", tmp_path)
    assert Upscaler(tiny_weights, "cpu", precision="auto").precision == "float32"
    with pytest.raises(ValueError, match="precision int8 needs the photographs of"):
        Upscaler(tiny_weights, "cpu", precision="int8")


@pytest.mark.parametrize(
    "precision, reason",
    [
        ("float64", "precision must be one of auto, float32, float16, int8, got 'float64'"),
        ("float16", "precision float16 needs a GPU"),
        ("int8", "precision int8 needs an x86 CPU with VNNI"),
    ],
)
def test_precisions_that_can_not_be_are_refused(tiny_weights, monkeypatch, precision, reason):
    monkeypatch.setattr(int8, "available", lambda: False)
    with pytest.raises(ValueError, match=reason):
        Upscaler(tiny_weights, "cpu", precision=precision)


# ---------------------------------------------------------------------------------- construction


def test_info_can_be_sent_as_json(upscaler, tiny_weights):
    info = json.loads(json.dumps(upscaler.info()))
    assert info["model"] == "srgan-x4"
    assert info["models"] == ["clean"]
    assert info["source"] == str(tiny_weights)
    assert info["revision"] is None
    assert info["scale"] == 4
    assert info["device"] == "cpu"
    assert info["adversarial"] is True
    assert info["default_detail"] == 0.75
    assert info["parameters"] == sum(p.numel() for p in upscaler.weights.srgan.parameters())
    assert info["limits"] == {"max_pixels": 2**21, "max_bytes": 50_000_000}
    assert torch.__version__.startswith(info["versions"]["torch"])
    assert info["notices"] == []


def test_info_can_be_changed_without_harm(upscaler):
    upscaler.info()["notices"].append("mine")
    assert upscaler.info()["notices"] == upscaler.notices == []


def test_weights_come_from_the_environment_too(tiny_weights, monkeypatch):
    monkeypatch.setenv("SRGAN_WEIGHTS", os.fspath(tiny_weights))
    assert Upscaler(device="cpu").info()["source"] == os.fspath(tiny_weights)


def test_fallback_tells_why(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_module, "BUNDLED_FOLDER", tiny_weights)
    damaged = shutil.copytree(tiny_weights, tmp_path / "damaged")
    (damaged / SRGAN_FILE).write_bytes(b"")
    with pytest.raises(WeightsError, match="is damaged"):
        Upscaler(damaged, "cpu")
    upscaler = Upscaler(damaged, "cpu", fallback=True)
    assert upscaler.info()["source"] == "bundled"
    assert "is damaged" in upscaler.notices[0]


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_devices_that_are_not_there_are_refused(tiny_weights, device):
    with pytest.raises(ValueError, match=f"device {device} is not available here"):
        Upscaler(tiny_weights, device)


def test_empty_tiles_are_refused(tiny_weights):
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        Upscaler(tiny_weights, "cpu", tile=0)
