import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srgan import Upscaler, __main__, open_image
from srgan.__main__ import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def small_weights(tiny_weights, monkeypatch):
    monkeypatch.setenv("SRGAN_WEIGHTS", str(tiny_weights))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow's limit, which must not hold


@pytest.fixture
def photo(tmp_path) -> Path:
    return save_photo(tmp_path / "photo.png")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with two photos of one name, a third one, a text and a folder."""
    folder = tmp_path / "photos"
    for i, name in enumerate(["a.png", "a.jpg", "b.webp"]):
        save_photo(folder / name, seed=i)
    (folder / "notes.txt").write_text("not an image")
    (folder / "more.png").mkdir()
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Fails the test where an Upscaler is made."""

    def upscaler(*_, **__):
        pytest.fail("work was begun")

    monkeypatch.setattr(__main__, "Upscaler", upscaler)


def save_photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8))
    coarse.resize((15, 11), Image.Resampling.BICUBIC).save(path)
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def the_line(capsys) -> str:
    """The one line on stderr."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


# ---------------------------------------------------------------------------------------- files


def test_file_gets_the_pixels_of_the_library(photo, tmp_path, tiny_weights, capsys):
    assert run(photo, tmp_path / "large.png") == 0
    expected = Upscaler(tiny_weights).upscale(open_image(photo))
    assert np.array_equal(pixels(tmp_path / "large.png"), np.asarray(expected))
    assert capsys.readouterr() == ("", "")  # no bars where there is no terminal


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "tif", "tiff", "webp", "bmp", "avif"])
def test_suffix_chooses_the_format(photo, tmp_path, suffix):
    assert run(photo, tmp_path / f"large.{suffix}") == 0
    with Image.open(tmp_path / f"large.{suffix}") as image:
        assert image.size == (60, 44)
        assert image.format[:3] == {"jpg": "JPE"}.get(suffix, suffix.upper()[:3])


def test_detail_and_tile_are_passed_on(photo, tmp_path, tiny_weights):
    assert run(photo, tmp_path / "0.png", "--detail", 0, "--tile", 4, "--device", "cpu") == 0
    expected = Upscaler(tiny_weights, "cpu", tile=4).upscale(open_image(photo), 0.0)
    assert np.array_equal(pixels(tmp_path / "0.png"), np.asarray(expected))


def test_model_is_passed_on(photo, tmp_path, tiny_photo_weights):
    options = ["--model", "photo", "--weights", tiny_photo_weights]
    assert run(photo, tmp_path / "large.png", *options) == 0
    expected = Upscaler(tiny_photo_weights).upscale(open_image(photo), model="photo")
    assert np.array_equal(pixels(tmp_path / "large.png"), np.asarray(expected))


def test_self_ensemble_is_passed_on(photo, tmp_path, tiny_weights):
    assert run(photo, tmp_path / "large.png", "--self-ensemble") == 0
    expected = Upscaler(tiny_weights).upscale(open_image(photo), self_ensemble=True)
    assert np.array_equal(pixels(tmp_path / "large.png"), np.asarray(expected))


def test_option_goes_before_the_variable(photo, tmp_path, tiny_weights, monkeypatch):
    monkeypatch.setenv("SRGAN_WEIGHTS", "/no/such/folder")
    assert run(photo, tmp_path / "large.png", "--weights", tiny_weights) == 0


def test_file_into_an_existing_folder_keeps_its_name(photo, tmp_path):
    (tmp_path / "out").mkdir()
    assert run(photo, tmp_path / "out") == 0
    assert pixels(tmp_path / "out" / "photo.png").shape == (44, 60, 3)


def test_existing_result_is_replaced(photo, tmp_path):
    (tmp_path / "large.png").write_bytes(b"old")
    assert run(photo, tmp_path / "large.png") == 0
    assert pixels(tmp_path / "large.png").shape == (44, 60, 3)


def test_first_frame_of_an_animation_is_told(tmp_path, capsys):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert run(tmp_path / "a.gif", tmp_path / "b.png") == 0
    assert "animated: only the first frame is used" in the_line(capsys)


def test_notices_about_the_weights_are_told(photo, tmp_path, tiny_weights, capsys):
    file = tiny_weights / "srgan-x4.safetensors"
    assert run(photo, tmp_path / "large.png", "--weights", file) == 0
    assert the_line(capsys) == "note: The weights are a single file, so detail has no effect.\n"


# -------------------------------------------------------------------------------------- folders


def test_folder_becomes_a_folder_of_pngs(photos, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert run(photos, out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.jpg.png", "a.png.png", "b.png"]
    assert all(pixels(path).shape == (44, 60, 3) for path in out.iterdir())
    assert capsys.readouterr() == ("", "")


def test_existing_output_folder_keeps_what_is_in_it(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.txt").write_text("mine")
    assert run(photos, tmp_path / "out") == 0
    assert (tmp_path / "out" / "other.txt").read_text() == "mine"
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_bad_file_in_a_folder_does_not_stop_the_others(photos, tmp_path, capsys):
    (photos / "aa.jpg").write_bytes((photos / "a.jpg").read_bytes()[:300])
    assert run(photos, tmp_path / "out") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.jpg.png",
        "a.png.png",
        "b.png",
    ]
    line = the_line(capsys)
    assert line.startswith(f"error: {photos / 'aa.jpg'}: ")
    assert "damaged" in line


def test_names_that_differ_in_case_only_do_not_meet(tmp_path):
    save_photo(tmp_path / "in" / "a.png")
    save_photo(tmp_path / "in" / "A.jpg")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["A.jpg.png", "a.png.png"]


def test_lengthened_names_meet_no_others(tmp_path):
    for name in ("a.jpg", "a.png", "a.jpg.webp"):
        save_photo(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.jpg.png", "a.jpg.webp.png", "a.png.png"]


def test_terminal_sees_a_bar_for_a_folder(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(photos, tmp_path / "out") == 0
    assert "3/3" in capsys.readouterr().err


# ------------------------------------------------------------------ refused before any work is done


@pytest.mark.parametrize(
    "source, target, reason",
    [
        ("photo.png", "large.xyz", "no known image suffix. Use one of .avif, .bmp, .jpeg, .jpg"),
        ("photo.png", "large", "no known image suffix"),
        ("photo.png", "large.heic", "no known image suffix"),
        ("photo.png", "photo.png", "same file"),
        ("photo.png", ".", "same file"),
        ("photo.png", "nowhere/large.png", "nowhere is not a folder; create it first"),
        ("missing.png", "large.png", "missing.png does not exist"),
        ("photos", "photos", "same folder"),
        ("photos", "photos/../photos/.", "same folder"),
        ("photos", "photo.png", "photos is a folder, so the output must be one too"),
        ("photos/more.png", "out", "more.png holds no images"),
    ],
)
def test_mistakes_are_found_before_any_work(
    photo, photos, tmp_path, monkeypatch, capsys, no_network, source, target, reason
):
    monkeypatch.chdir(tmp_path)
    before = photo.read_bytes()
    assert run(source, target) == 1
    assert reason in the_line(capsys)
    assert photo.read_bytes() == before
    assert not Path("out").exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_input_is_not_overwritten_through_a_link(photo, tmp_path, capsys, no_network, link):
    link(photo, tmp_path / "link.png")
    assert run(photo, tmp_path / "link.png") == 1
    assert "same file" in the_line(capsys)


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--detail", "1.5"], "detail must be in [0, 1], got 1.5"),
        (["--detail", "nan"], "detail must be in [0, 1], got nan"),
        (["--tile", "0"], "tile must be at least 1, got 0"),
        (["--device", "abacus"], "device abacus is not available here"),
        (["--model", "photo"], "model must be one that the weights have (clean), got 'photo'"),
        (["--weights", "no-such-thing"], "No weights at 'no-such-thing'"),
        (["--weights", "no/such.safetensors"], "No weights at 'no/such.safetensors'"),
        (["--weights", "user/repo"], "user/repo can't be had from the Hub"),
    ],
)
def test_options_that_cannot_be_met_are_one_line(photos, tmp_path, capsys, options, reason):
    assert run(photos, tmp_path / "out", *options) == 1
    assert reason in the_line(capsys)
    assert not (tmp_path / "out").exists()


def test_bad_limit_in_the_environment_is_one_line(photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SRGAN_MAX_PIXELS", "many")
    assert run(photo, tmp_path / "large.png") == 1
    assert "SRGAN_MAX_PIXELS" in the_line(capsys)


def test_folder_without_write_permission_is_noticed_first(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run(photos, tmp_path / "out") == 1
    assert "out is not writable" in the_line(capsys)
    assert not list((tmp_path / "out").iterdir())


def test_output_folder_that_cannot_be_made_is_one_line(photos, photo, capsys):
    assert run(photos, photo / "out") == 1
    assert "can't be made" in the_line(capsys)


@pytest.mark.parametrize(
    "arguments", [[], ["photo.png"], ["a", "b", "--tile", "x"], ["a", "b", "--model", "x"]]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m srgan" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- stopping


def test_interrupt_leaves_no_half_file(photos, tmp_path, capsys, monkeypatch):
    upscale, calls = Upscaler.upscale, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return upscale(*arguments, **options)

    monkeypatch.setattr(Upscaler, "upscale", interrupted)
    assert run(photos, tmp_path / "out") == 1
    assert "stopped" in the_line(capsys)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg.png"]


# -------------------------------------------------------------------------------------- for real


def test_program_runs_as_a_module(photos, tmp_path):
    (photos / "bad.png").write_bytes(b"not a png")
    done = subprocess.run(
        [sys.executable, "-m", "srgan", photos, tmp_path / "out", "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {photos / 'bad.png'}: ")
    assert done.stderr.count("\n") == 1
    assert len(list((tmp_path / "out").iterdir())) == 3
