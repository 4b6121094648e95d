import hashlib
import http.server
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train import prepare, sources
from train.download import download
from train.photos import FORMATS, Duplicates, Picture, Rejected, decode, look_of
from train.prepare import PrepareConfig
from train.sources import PrepareError, list_sources

ROOT = Path(__file__).parent.parent


def photo(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A picture unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noise = rng.integers(-8, 9, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve photos in a folder of folders, and a file that is none."""
    folder = tmp_path / "photos"
    for seed in range(12):
        path = folder / ("deep/er" if seed % 3 else ".") / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(seed, 40 + seed, 40)))
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(*sources, out: Path, **options) -> dict:
    options = {"min_side": 32, "workers": 1} | options
    paths = tuple(str(path) for path in (*sources, out))
    return prepare.prepare(PrepareConfig(paths=paths, **options))


def command(*arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "train.prepare", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def names(records: list[dict]) -> list[str]:
    return [record["name"].rpartition("/")[2] for record in records]


# ------------------------------------------------------------------------------ the result


def test_packed_dataset_holds_every_photo(photos, tmp_path):
    manifest = run(photos, out=tmp_path / "out", validation=0.3)

    index = np.load(tmp_path / "out/index.npy")
    packed = (tmp_path / "out/images.bin").read_bytes()
    assert index.dtype == np.int64 and index.shape == (12, 4)
    assert manifest == json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["images_sha256"] == hashlib.sha256(packed).hexdigest()
    assert manifest["images_bytes"] == len(packed)
    assert manifest["counts"]["not_images"] == 1
    for (offset, height, width, split), record in zip(index, manifest["images"], strict=True):
        pixels = packed[offset : offset + height * width * 3]
        original = Image.open(photos.parent / record["name"])
        assert (record["width"], record["height"]) == (width, height) == original.size
        assert record["split"] == ("train", "validation")[split]
        assert record["sha256"] == hashlib.sha256(pixels).hexdigest()
        assert pixels == original.tobytes()


def test_reader_of_the_training_programs_reads_it(photos, tmp_path):
    from train import data  # here, because it loads torch

    manifest = run(photos, out=tmp_path / "out", validation=0.3)
    training, validation = data.load_packed(tmp_path / "out")
    counts = manifest["counts"]
    assert (len(training), len(validation)) == (counts["train"], counts["validation"])
    assert min(counts["train"], counts["validation"]) > 0
    last = [record["name"] for record in manifest["images"] if record["split"] == "train"][-1]
    original = np.asarray(Image.open(photos.parent / last))
    restored = training.image(len(training) - 1)[0].permute(1, 2, 0).mul(255).round()
    assert np.array_equal(restored.numpy(), original)


def test_of_a_few_images_one_is_held_out(photos, tmp_path):
    manifest = run(photos, out=tmp_path / "out", validation=1e-6)
    (held,) = [record for record in manifest["images"] if record["split"] == "validation"]
    assert held["sha256"] == min(record["sha256"] for record in manifest["images"])


def test_file_names_are_those_of_the_reader():
    from train import data

    for name in ("IMAGES_FILE", "INDEX_FILE", "MANIFEST_FILE"):
        assert getattr(prepare, name) == getattr(data, name)


def archive(folder: Path, kind: str) -> Path:
    """The folder as an archive whose members come in no order."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    random.Random(0).shuffle(files)
    path = folder.parent / f"photos.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as target:
            for number, file in enumerate(files):
                method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
                target.write(file, file.relative_to(folder.parent), method)
    else:
        with tarfile.open(path, "w:" + kind.partition(".")[2]) as target:
            for file in files:
                target.add(file, "./" + file.relative_to(folder.parent).as_posix())
    return path


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_archive_gives_the_same_bytes_as_the_folder(photos, tmp_path, kind):
    run(photos, out=tmp_path / "folder")
    run(archive(photos, kind), out=tmp_path / "archive")
    assert set(contents(tmp_path / "archive")) == {"images.bin", "index.npy", "manifest.json"}
    for name in ("images.bin", "index.npy"):
        assert (tmp_path / "archive" / name).read_bytes() == (
            tmp_path / "folder" / name
        ).read_bytes()


def test_result_does_not_depend_on_the_number_of_workers(photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"nothing")
    run(photos, out=tmp_path / "one", workers=1)
    run(photos, out=tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_size_resizes_and_keeps_the_original_size_in_the_manifest(photos, tmp_path):
    manifest = run(photos, out=tmp_path / "out", size=256)
    assert (np.load(tmp_path / "out/index.npy")[:, 1:3] == 256).all()
    assert (tmp_path / "out/images.bin").stat().st_size == 12 * 256 * 256 * 3
    record = manifest["images"][-1]
    original = Image.open(photos.parent / record["name"])
    assert (record["original_width"], record["original_height"]) == original.size
    resized = original.resize((256, 256), Image.Resampling.BICUBIC)
    assert (tmp_path / "out/images.bin").read_bytes().endswith(resized.tobytes())


def test_split_is_stable_when_photos_are_added(photos, tmp_path):
    before = run(photos, out=tmp_path / "before", validation=0.4)
    for seed in range(20, 30):
        (photos / f"0{seed}.png").write_bytes(encoded(photo(seed)))
    after = run(photos, out=tmp_path / "after", validation=0.4)
    splits = {record["name"]: record["split"] for record in after["images"]}
    assert {splits[record["name"]] for record in before["images"]} == {"train", "validation"}
    assert all(splits[record["name"]] == record["split"] for record in before["images"])


def test_limit_takes_the_first_names(photos, tmp_path):
    manifest = run(photos, out=tmp_path / "out", limit=3)
    assert names(manifest["images"]) == ["0.png", "3.png", "6.png"]


def test_sources_of_the_same_name_are_told_apart(photos, tmp_path):
    other = tmp_path / "more/photos"
    other.mkdir(parents=True)
    (other / "0.png").write_bytes(encoded(photo(99)))
    manifest = run(photos, other, out=tmp_path / "out")
    assert manifest["images"][0]["name"] == "photos/0.png"
    assert manifest["images"][-1]["name"] == "photos#2/0.png"


# ---------------------------------------------------------------------------- left out


def test_exact_and_near_duplicates_are_dropped(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    large = photo(1, 160, 120)
    files = {
        "a.png": encoded(large),
        "b.png": encoded(large, compress_level=1),  # other bytes, the same pixels
        "c.jpg": encoded(large, "JPEG", quality=60),
        "d.png": encoded(large.resize((80, 60), Image.Resampling.BICUBIC)),
        "e.png": encoded(photo(2, 160, 120)),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)

    manifest = run(folder, out=tmp_path / "out")
    assert names(manifest["images"]) == ["a.png", "e.png"]
    reasons = [(record["reason"], record["detail"]) for record in manifest["rejected"]]
    assert reasons == [
        ("exact duplicate", "of photos/a.png"),
        ("near duplicate", "of photos/a.png"),
        ("near duplicate", "of photos/a.png"),
    ]
    assert manifest["counts"]["rejected"] == {"exact duplicate": 1, "near duplicate": 2}

    manifest = run(folder, out=tmp_path / "all", near_duplicates=None)
    assert names(manifest["images"]) == ["a.png", "c.jpg", "d.png", "e.png"]


def picture(code: int, thumbnail: np.ndarray, name: str) -> Picture:
    return Picture(
        name=name,
        sha256=name,
        height=1,
        width=1,
        original_height=1,
        original_width=1,
        look=(code.to_bytes(8, "big") + thumbnail.tobytes()).hex(),
    )


@pytest.mark.parametrize("bits", [0, 6])
def test_near_duplicates_differ_in_at_most_so_many_bits(bits):
    rng = random.Random(bits)
    duplicates = Duplicates(bits)
    grey = np.full(192, 128, np.uint8)
    codes = [rng.getrandbits(64) for _ in range(3000)]  # more than fit at first
    for number, code in enumerate(codes):
        duplicates.add(picture(code, grey, f"known {number}"))
    found = 0
    for number in range(400):
        code = rng.choice(codes)
        for bit in rng.sample(range(64), rng.randrange(bits + 4)):
            code ^= 1 << bit
        expected = any((code ^ known).bit_count() <= bits for known in codes)
        assert (duplicates.find(picture(code, grey, f"{number}")) is not None) == expected
        found += expected
    assert 50 < found < 400


def test_same_hash_with_other_colours_is_no_duplicate():
    duplicates = Duplicates(6)
    duplicates.add(picture(0, np.full(192, 60, np.uint8), "night"))
    assert duplicates.find(picture(0, np.full(192, 200, np.uint8), "day")) is None
    assert duplicates.find(picture(1, np.full(192, 63, np.uint8), "same night")) is not None


def test_look_survives_another_size_and_compression():
    image = photo(5, 240, 180)
    small = Image.open(io.BytesIO(encoded(image.resize((120, 90)), "JPEG", quality=50)))
    first, second = look_of(image), look_of(small.convert("RGB"))
    assert bin(int.from_bytes(first[:8], "big") ^ int.from_bytes(second[:8], "big")).count("1") <= 6


def declared(width: int, height: int) -> bytes:
    """A PNG file that says it is large and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_unusable_files_are_listed_with_their_reasons(photos, tmp_path):
    jpeg = encoded(photo(50, 200, 200), "JPEG")
    (photos / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (photos / "text.jpg").write_text("this is not a photo")
    (photos / "empty.png").touch()
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "bomb.png").write_bytes(declared(12000, 12000))
    (photos / "small.png").write_bytes(encoded(photo(51, 200, 31)))
    (photos / "float.tif").write_bytes(encoded(Image.new("F", (64, 64)), "TIFF"))
    (photos / ".thumbnail.png").write_bytes(encoded(photo(52)))
    manifest = run(photos, out=tmp_path / "out")
    rejected = {
        record["name"].rpartition("/")[2]: (record["reason"], record["detail"])
        for record in manifest["rejected"]
    }
    assert rejected == {
        "cut.jpg": ("unreadable", rejected["cut.jpg"][1]),
        "text.jpg": ("unreadable", "not an image of a known format"),
        "empty.png": ("unreadable", "not an image of a known format"),
        "gone.png": ("unreadable", "No such file or directory"),
        "bomb.png": ("too large", "12000×12000, more than 64000000 pixels"),
        "small.png": ("too small", "200×31, a side under 32"),
        "float.tif": ("unreadable", rejected["float.tif"][1]),
    }
    assert "truncated" in rejected["cut.jpg"][1]
    assert "mode F" in rejected["float.tif"][1]
    assert len(manifest["images"]) == 12


def test_damaged_zip_member_is_rejected_and_the_others_are_used(photos, tmp_path):
    path = archive(photos, "zip")
    with zipfile.ZipFile(path) as source:
        member = source.getinfo("photos/3.png")
    content = bytearray(path.read_bytes())
    content[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 255
    path.write_bytes(content)
    manifest = run(path, out=tmp_path / "out")
    assert names(manifest["rejected"]) == ["3.png"]
    assert manifest["rejected"][0]["reason"] == "unreadable"
    assert len(manifest["images"]) == 11


def test_zip_member_that_expands_without_end_is_not_expanded(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 10**6)
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a.png", encoded(photo(1)))
        target.writestr("bomb.png", bytes(10**6 + 1))
    entries, _ = list_sources([path], tmp_path / "scratch")
    with pytest.raises(Rejected, match="unreadable: ValueError: 1000001 bytes"):
        decode(entries[1], max_pixels=1000)


# -------------------------------------------------------------------------------- pixels


def as_rgb(content: bytes, tmp_path: Path, suffix: str) -> np.ndarray:
    path = tmp_path / f"image{suffix}"
    path.write_bytes(content)
    (entry,), _ = list_sources([tmp_path], tmp_path / "scratch")
    return np.asarray(decode(entry, max_pixels=10**6)).astype(int)


def test_sixteen_bit_grey_is_scaled(tmp_path):
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    rgb = as_rgb(encoded(Image.fromarray(levels)), tmp_path, ".png")
    assert np.abs(rgb - (levels / 257)[:, :, None]).max() <= 0.5


def test_transparent_pixels_are_laid_over_white(tmp_path):
    image = photo(1).convert("RGBA")
    image.putalpha(0)
    assert (as_rgb(encoded(image), tmp_path, ".png") == 255).all()


def test_palette_and_grey_become_rgb(tmp_path):
    palette = photo(1).quantize(32)
    rgb = as_rgb(encoded(palette, "GIF"), tmp_path, ".gif")
    assert np.array_equal(rgb, np.asarray(palette.convert("RGB")))
    grey = photo(2).convert("L")
    (tmp_path / "image.gif").unlink()
    rgb = as_rgb(encoded(grey), tmp_path, ".png")
    assert np.array_equal(rgb, np.repeat(np.asarray(grey)[:, :, None], 3, 2))


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("RGB", (64, 64), (200, 40, 60)).convert("CMYK")
    rgb = as_rgb(encoded(image, "JPEG", quality=95), tmp_path, ".jpg")
    assert np.abs(rgb - (200, 40, 60)).max() <= 4


def test_exif_orientation_is_applied(tmp_path):
    image = photo(1, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    rgb = as_rgb(encoded(image, "PNG", exif=exif), tmp_path, ".png")
    assert np.array_equal(rgb, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


def test_a_photo_is_not_copied(tmp_path, monkeypatch):
    content = encoded(photo(1, 60, 40), "JPEG")
    monkeypatch.setattr(Image.Image, "copy", None)
    assert as_rgb(content, tmp_path, ".jpg").shape == (40, 60, 3)


def test_heic_is_read_where_its_library_is_installed(tmp_path):
    pytest.importorskip("pillow_heif")
    image = photo(1, 64, 64)
    rgb = as_rgb(encoded(image, "HEIF", quality=100), tmp_path, ".heic")
    assert np.abs(rgb - np.asarray(image)).mean() < 8


def test_formats_are_those_that_pillow_has_here():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


def test_damaged_exif_does_not_cost_the_photo(tmp_path):
    image = photo(1)
    rgb = as_rgb(encoded(image, "PNG", exif=b"Exif\0\0no such header"), tmp_path, ".png")
    assert np.array_equal(rgb, np.asarray(image))


# ------------------------------------------------------------------------ stop and go on


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_run_resumed_after_a_kill_equals_an_uninterrupted_run(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(80):
        (folder / f"{seed}.png").write_bytes(encoded(photo(seed % 70, 320, 300), compress_level=1))
    (folder / "12.png").write_bytes(b"broken")
    options = ["--min-side", "32", "--workers", "2"]

    killed = command(folder, tmp_path / "out", *options)
    wait_for(lambda: lines(tmp_path / "out/journal.jsonl") > 5 or killed.poll() is not None)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    killed.send_signal(signal.SIGKILL)
    killed.wait(120)  # not communicate(): a worker left behind would hold the pipes open
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out/manifest.json").exists()
    assert 5 < lines(tmp_path / "out/journal.jsonl") < 81
    wait_for(lambda: not any(is_running(pid) for pid in workers))

    resumed = command(folder, tmp_path / "out", *options)
    log = resumed.communicate()[1]
    assert resumed.returncode == 0 and "checking what an earlier run has done" in log, log
    run(folder, out=tmp_path / "whole", workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Stopped(Exception):
    pass


def stop_after(count: int, monkeypatch) -> None:
    """Makes the next run fail at its image number `count`."""
    load = prepare.load_picture
    calls = iter(range(1000))

    def failing(*arguments, **options):
        if next(calls) == count:
            raise Stopped
        return load(*arguments, **options)

    monkeypatch.setattr(prepare, "load_picture", failing)


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: os.truncate(out / "images.bin", (out / "images.bin").stat().st_size - 100),
        lambda out: os.truncate(
            out / "journal.jsonl", (out / "journal.jsonl").stat().st_size - 100
        ),
        lambda out: os.truncate(out / "journal.jsonl", 20),
        lambda out: (out / "images.bin").write_bytes(bytes((out / "images.bin").stat().st_size)),
        lambda out: (out / "images.bin").unlink(),
    ],
    ids=["cut images", "cut journal", "cut header", "zeroed images", "no images"],
)
def test_whatever_a_crash_left_is_repaired(photos, tmp_path, monkeypatch, damage):
    run(photos, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(Stopped):
            run(photos, out=tmp_path / "out")
    damage(tmp_path / "out")
    with monkeypatch.context() as patch:  # and a second crash
        stop_after(2, patch)
        with pytest.raises(Stopped):
            run(photos, out=tmp_path / "out")
    for line in (tmp_path / "out/journal.jsonl").read_text().splitlines():
        json.loads(line)
    run(photos, out=tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_resumed_run_decodes_only_what_is_missing(photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(Stopped):
            run(photos, out=tmp_path / "out")
    stop_after(5, monkeypatch)  # 12 images, 7 of them done: never reached
    assert len(run(photos, out=tmp_path / "out")["images"]) == 12


def test_finished_dataset_is_left_alone(photos, tmp_path, monkeypatch):
    first = run(photos, out=tmp_path / "out")
    stop_after(0, monkeypatch)
    assert run(photos, out=tmp_path / "out") == first


def test_full_disk_is_one_clear_line_and_the_run_goes_on_later(photos, tmp_path):
    def no_space():  # a file may not grow beyond this: to the program, a disk that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, resource.RLIM_INFINITY))

    arguments = (photos, tmp_path / "out", "--min-side", "32", "--workers", "1")
    process = command(*arguments, preexec_fn=no_space)
    error = process.communicate()[1].strip().splitlines()[-1]
    assert process.returncode == 1
    assert error.startswith("error: no space left ([Errno 27] File too large)"), error
    assert lines(tmp_path / "out/journal.jsonl") == 1 + 5
    assert not (tmp_path / "out/manifest.json").exists()
    process = command(*arguments)
    assert process.wait() == 0, process.communicate()
    run(photos, out=tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# -------------------------------------------------------------------------------- errors


def test_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.txt").write_text("a")
    process = command(tmp_path / "photos", tmp_path / "out")
    log = process.communicate()[1]
    assert process.returncode == 1
    assert log.startswith(f"error: no image files in {tmp_path / 'photos'}: 1 files, none of")
    assert log.count("\n") == 1


def test_nothing_usable_is_an_error_that_names_the_reasons(photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"nothing")
    reasons = r"12 too small \(photos/0.png: 40×40, a side under 500\), 1 unreadable"
    with pytest.raises(PrepareError, match="none of the 13 images can be used: " + reasons):
        run(photos, out=tmp_path / "out", min_side=500)
    assert not any((tmp_path / "out").iterdir())


def test_worker_that_dies_is_an_error():
    with pytest.raises(PrepareError, match="a worker process died or ran out of memory"):
        list(prepare.map_in_order(os._exit, [1, 1, 1], 2))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_source_that_cannot_be_read_is_an_error(tmp_path, content):
    (tmp_path / "photos.zip").write_bytes(content)
    with pytest.raises(PrepareError, match="no readable zip or tar archive"):
        run(tmp_path / "photos.zip", out=tmp_path / "out")
    with pytest.raises(PrepareError, match="missing does not exist"):
        run(tmp_path / "missing", out=tmp_path / "out")


def test_cut_archive_is_an_error(photos, tmp_path):
    path = archive(photos, "tar.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(PrepareError, match=r"photos\.tar\.gz is damaged"):
        run(path, out=tmp_path / "out")


def test_folder_with_other_files_is_not_written_to(photos, tmp_path):
    before = sorted(photos.rglob("*"))
    with pytest.raises(PrepareError, match="holds other files"):
        run(photos, out=photos)
    with pytest.raises(PrepareError, match="holds other files"):
        run(photos, out=photos, overwrite=True)
    assert sorted(photos.rglob("*")) == before


def test_other_settings_or_files_need_overwrite(photos, tmp_path):
    run(photos, out=tmp_path / "out")
    with pytest.raises(PrepareError, match="size was None, is 64"):
        run(photos, out=tmp_path / "out", size=64)
    (photos / "13.png").write_bytes(encoded(photo(13)))
    with pytest.raises(PrepareError, match="the image files are others"):
        run(photos, out=tmp_path / "out")
    run(photos, out=tmp_path / "fresh", size=64)
    run(photos, out=tmp_path / "out", size=64, overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    "option, message",
    [
        ({"validation": 1.5}, "validation must be from 0 to 1, got 1.5"),
        ({"near_duplicates": 17}, "near_duplicates must be from 0 to 16, got 17"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"paths": ("photos",)}, "expected SOURCE .* OUT, got photos"),
    ],
)
def test_settings_out_of_range_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**({"paths": ("photos", "out")} | option))


# ------------------------------------------------------------------------------ download


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, with the faults of real servers.

    Attributes:
        ranges: whether parts can be asked for.
        cuts: for each coming answer, after how many bytes the connection breaks.
        surplus: bytes announced beyond those that come.
        requests: (path, Range header) of what was asked.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cuts: list[int] = []
        self.surplus = 0
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=")[:-1]) if wanted and self.server.ranges else 0
        total = len(content) + self.server.surplus
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        stop = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:stop])
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


CONTENT = random.Random(1).randbytes(1_000_000)


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_after_a_cut_connection(server, tmp_path, ranges):
    server.files["/a.zip"] = CONTENT
    server.ranges = ranges
    server.cuts = [400_000, 300_000]
    download(server.url + "a.zip", tmp_path / "new/a.zip", pause=0)
    assert (tmp_path / "new/a.zip").read_bytes() == CONTENT
    assert os.listdir(tmp_path / "new") == ["a.zip"]
    if ranges:
        assert [wanted for _, wanted in server.requests] == [None, "bytes=400000-", "bytes=700000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_where_an_earlier_run_stopped(server, tmp_path, ranges):
    server.files["/a.zip"] = CONTENT
    server.ranges = ranges
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:999_000])
    download(server.url + "a.zip", tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.requests == [("/a.zip", "bytes=999000-")]


@pytest.mark.parametrize("extra", [0, 500])
def test_download_whose_part_is_whole_or_too_long(server, tmp_path, extra):
    server.files["/a.zip"] = CONTENT
    (tmp_path / "a.zip.part").write_bytes(CONTENT + bytes(extra))
    download(server.url + "a.zip", tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert len(server.requests) == (2 if extra else 1)


def test_download_of_a_wrong_size_is_an_error_and_keeps_what_came(server, tmp_path):
    server.files["/a.zip"] = CONTENT
    server.surplus = 7
    with pytest.raises(PrepareError, match="1000000 bytes are kept in"):
        download(server.url + "a.zip", tmp_path / "a.zip", attempts=3, pause=0)
    assert os.listdir(tmp_path) == ["a.zip.part"]


def test_download_of_a_missing_file_is_not_tried_twice(server, tmp_path):
    with pytest.raises(PrepareError, match="the server says 404"):
        download(server.url + "a.zip", tmp_path / "a.zip", pause=0)
    assert len(server.requests) == 1


def test_download_without_a_server_is_an_error(server, tmp_path):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(PrepareError, match=r"\(2 attempts\)"):
        download(url + "a.zip", tmp_path / "a.zip", attempts=2, pause=0)


def test_mirflickr_parts_are_downloaded_and_read_from_the_zip(server, tmp_path):
    for part in (0, 2):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            for number in range(3):
                name = f"images/{part}/{part}{number}.jpg"
                target.writestr(name, encoded(photo(10 * part + number, 90, 60), "JPEG"))
        server.files[f"/mirflickr1m.v3b/images{part}.zip"] = buffer.getvalue()
    arguments = ["mirflickr:0,2", tmp_path / "out", "--min-side", "32", "--workers", "1"]
    process = command(*arguments, "--mirflickr-url", server.url)
    assert process.wait() == 0, process.communicate()
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [record["name"] for record in manifest["images"]] == [
        f"images{part}.zip/images/{part}/{part}{number}.jpg"
        for part in (0, 2)
        for number in range(3)
    ]
    assert sorted(os.listdir(tmp_path)) == ["downloads", "out"]
    assert sorted(os.listdir(tmp_path / "downloads")) == ["images0.zip", "images2.zip"]

    server.requests.clear()
    again = run("mirflickr:0,2", out=tmp_path / "again", mirflickr_url=server.url)
    assert again["images"] == manifest["images"] and not server.requests


def test_mirflickr_names_other_than_parts_are_refused(tmp_path):
    for name in ("mirflickr:10", "mirflickr:a", "mirflickr:0,,1"):
        with pytest.raises(PrepareError, match=r"expected parts|does not exist"):
            run(name, out=tmp_path / "out")


def test_mirflickr25k_is_downloaded(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr("mirflickr/im1.jpg", encoded(photo(1), "JPEG"))
        target.writestr("mirflickr/meta/tags.txt", "sky")
    server.files["/mirflickr25k.v3b/mirflickr25k.zip"] = buffer.getvalue()
    manifest = run("mirflickr25k", out=tmp_path / "out", mirflickr_url=server.url)
    assert names(manifest["images"]) == ["im1.jpg"]


def test_nothing_is_downloaded_for_a_finished_dataset(server, tmp_path):
    for part in (0, 1):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            target.writestr("images/1.jpg", encoded(photo(part), "JPEG"))
        server.files[f"/mirflickr1m.v3b/images{part}.zip"] = buffer.getvalue()
    options = {"out": tmp_path / "out", "mirflickr_url": server.url}
    manifest = run("mirflickr", **options)
    (tmp_path / "downloads/images0.zip").unlink()
    server.requests.clear()
    assert run("mirflickr", **options) == manifest
    with pytest.raises(PrepareError, match="size was None, is 64"):
        run("mirflickr", **options, size=64)
    assert not server.requests
    with pytest.raises(PrepareError, match="the image files are others"):
        run("mirflickr:0,1", **options)
