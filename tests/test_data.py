import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.data import (
    IMAGES_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    MARGIN,
    CropSampler,
    PackedImages,
    _copy,
    _gather,
    degrade,
    load_packed,
    reduce,
)

TOLERANCE = 1 / 255 + 1e-6


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]


def reduced_by_pillow(image: np.ndarray, top: int = 0, left: int = 0) -> torch.Tensor:
    """With the grid of the LR pixels beginning at (top, left)."""
    height, width = (image.shape[0] - top) // 4, (image.shape[1] - left) // 4
    box = (left, top, left + 4 * width, top + 4 * height)
    image = Image.fromarray(np.ascontiguousarray(image))
    return tensor(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box)))


def packed(*images: np.ndarray) -> PackedImages:
    sizes = [(image.size, *image.shape[:2]) for image in images]
    offsets = np.cumsum([0] + [size for size, _, _ in sizes[:-1]])
    index = [(offset, h, w) for offset, (_, h, w) in zip(offsets, sizes, strict=True)]
    return PackedImages(
        pixels=torch.from_numpy(np.concatenate([image.ravel() for image in images])),
        index=torch.tensor(np.array(index)),
    )


def coded(height: int, width: int, first: int = 0) -> np.ndarray:
    """Every pixel has a value of its own: red and green are its number, from `first`."""
    number = first + np.arange(height * width).reshape(height, width)
    return np.stack([number // 256, number % 256, 0 * number], axis=2).astype(np.uint8)


def numbers(hr: torch.Tensor) -> np.ndarray:  # (N, 3, H, W) -> (N, H, W)
    values = (255 * hr).round().long()
    return (256 * values[:, 0] + values[:, 1]).numpy()


def sampler(*images: np.ndarray, crop: int = 8, batch: int = 64, seed: int = 0, **options):
    random = torch.Generator().manual_seed(seed)
    return CropSampler(packed(*images), crop=crop, batch=batch, generator=random, **options)


# --------------------------------------------------------------------------------- degradation


@pytest.mark.parametrize("size", [(4, 4), (4, 64), (40, 24), (132, 116)])
@pytest.mark.parametrize("saturated", [False, True])
def test_degradation_is_pillows_bicubic(size, saturated):
    image = noise(*size)
    if saturated:  # overshoots everywhere, which Pillow clips after each direction
        image = 255 * (image > 127).astype(np.uint8)
    lr, expected = degrade(tensor(image)), reduced_by_pillow(image)
    assert lr.shape == (1, 3, size[0] // 4, size[1] // 4)
    torch.testing.assert_close(lr, expected, rtol=0, atol=TOLERANCE)
    assert ((lr - expected).abs() > 1e-6).float().mean() < 0.01


def test_degradation_gives_8_bit_values_and_leaves_its_input():
    hr = tensor(noise(16, 16))
    before = hr.clone()
    lr = degrade(hr)
    torch.testing.assert_close(255 * lr, (255 * lr).round(), rtol=0, atol=1e-4)
    assert lr.min() >= 0
    assert lr.max() <= 1
    assert torch.equal(hr, before)


def test_crop_with_margin_gives_the_low_res_pixels_of_the_whole_image():
    image = noise(96, 128)
    top, left, side = 32, 52, 24
    region = tensor(image)[
        ..., top - MARGIN : top + side + MARGIN, left - MARGIN : left + side + MARGIN
    ]
    context = MARGIN // 4
    lr = degrade(region)[..., context:-context, context:-context]
    inside = (..., slice(top // 4, (top + side) // 4), slice(left // 4, (left + side) // 4))
    torch.testing.assert_close(lr, degrade(tensor(image))[inside], rtol=0, atol=1e-6)
    torch.testing.assert_close(lr, reduced_by_pillow(image)[inside], rtol=0, atol=TOLERANCE)


def test_without_margin_it_would_not():
    image = noise(96, 128)
    bare = degrade(tensor(image)[..., 32:56, 52:76])
    assert (bare - degrade(tensor(image))[..., 8:14, 13:19]).abs().max() > 2 * TOLERANCE


# ------------------------------------------------------------------------------------ sampling


def test_reduced_pairs_are_what_the_whole_reduced_image_would_give():
    image = noise(128, 120)
    lr, hr = sampler(image, crop=16, batch=16, reductions=(2,)).next()
    assert lr.shape == (16, 3, 4, 4)
    wholes = []  # reduced from the first or the second row and column on, in all orientations
    for top, left in product(range(2), range(2)):
        half = reduce(tensor(image[top : 126 + top, left : 118 + left]), 2)
        wholes += [flipped.rot90(k, (2, 3)) for flipped in (half, half.flip(3)) for k in range(4)]
    for low, high in zip(lr, hr, strict=True):
        windows = [whole.unfold(2, 16, 1).unfold(3, 16, 1) for whole in wholes]
        errors = [(w - high[None, :, None, None]).abs().amax((1, 4, 5))[0] for w in windows]
        which = min(range(len(wholes)), key=lambda i: errors[i].min())
        assert errors[which].min() < TOLERANCE
        top, left = divmod(errors[which].argmin().item(), errors[which].shape[1])
        region = wholes[which][..., top - 8 : top + 24, left - 8 : left + 24]
        torch.testing.assert_close(low, degrade(region)[0, :, 2:-2, 2:-2], rtol=0, atol=TOLERANCE)


def test_each_batch_has_one_of_the_reductions():
    image = np.tile((np.arange(160) // 2 % 2 * 255).astype(np.uint8)[:, None, None], (1, 160, 3))
    batches = sampler(image, crop=16, batch=4, reductions=(1, 4))
    evenness = [batches.next()[1].std((1, 2, 3)) for _ in range(40)]  # ÷4 makes the stripes grey
    grey = torch.stack([batch < 0.2 for batch in evenness])
    assert (grey.all(1) | ~grey.any(1)).all()
    assert 8 < grey.all(1).sum() < 32


@pytest.mark.parametrize("reduction", [1, 2])
def test_of_the_candidates_the_one_with_most_detail_is_taken(reduction):
    detailed = noise(100, 100)
    flat, striped = np.full_like(detailed, 90), np.full_like(detailed, 90)
    striped[:, ::8] = 100  # more than nothing, less than noise
    options = {"crop": 16, "batch": 300, "reductions": (reduction,), "candidates": 3}
    _, hr = sampler(flat, striped, detailed, **options).next()
    spread = hr.std((1, 2, 3))
    shares = [(spread > 0.1).float().mean(), (spread < 0.001).float().mean()]
    # Of three one is noise with probability 1 - (2/3)^3, all are flat with (1/3)^3.
    assert shares[0] == pytest.approx(19 / 27, abs=0.1)
    assert shares[1] == pytest.approx(1 / 27, abs=0.04)


def test_pairs_are_what_the_whole_image_would_give():
    """Finds each HR crop in its image and compares its LR with Pillow's of that image."""
    image = coded(60, 52)
    image[..., 2] = noise(60, 52)[..., 0]  # something for the degradation to do
    lr, hr = sampler(image, crop=16, batch=32).next()
    assert lr.shape == (32, 3, 4, 4)
    assert hr.shape == (32, 3, 16, 16)
    for low, high, number in zip(lr, hr, numbers(hr), strict=True):
        for view in views(image):
            where = np.argwhere(numbers(tensor(view))[0] == number[0, 0])[0]
            top, left = where
            if np.array_equal(numbers(tensor(view))[0, top : top + 16, left : left + 16], number):
                break
        else:
            pytest.fail("the crop is not a part of the image")
        assert torch.equal(high, tensor(view)[0, :, top : top + 16, left : left + 16])
        y, x = top // 4, left // 4
        expected = reduced_by_pillow(view, top % 4, left % 4)[0, :, y : y + 4, x : x + 4]
        torch.testing.assert_close(low, expected, rtol=0, atol=TOLERANCE)


def views(image: np.ndarray) -> list[np.ndarray]:
    """The eight orientations."""
    flipped = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    return flipped + [view.swapaxes(0, 1) for view in flipped]


def test_all_eight_orientations_occur_equally_often():
    image = coded(24, 24)  # just one crop, so that the orientation is all that differs
    batch = 4000
    _, hr = sampler(image, batch=batch).next()
    whole = numbers(tensor(image))[0]
    middles = [v[MARGIN:-MARGIN, MARGIN:-MARGIN].tobytes() for v in views(whole)]
    counts = Counter(number.tobytes() for number in numbers(hr))
    assert set(counts) == set(middles)
    assert len(counts) == 8
    # Mean 500, standard deviation 21.
    assert all(abs(count - batch / 8) < 5 * 21 for count in counts.values())


def test_every_crop_of_every_image_is_equally_likely():
    """Sizes of which 6, 1, 12 and no crops can be cut."""
    images = [coded(24 + 1, 24 + 2), coded(24, 24, 10_000), coded(26, 27, 20_000), coded(23, 99)]
    batch = 19_000
    _, hr = sampler(*images, batch=batch).next()
    counts = Counter(int(number.min()) for number in numbers(hr))
    assert len(counts) == 6 + 1 + 12
    # Mean 1000, standard deviation 31.
    assert all(abs(count - 1000) < 5 * 31 for count in counts.values())


@pytest.mark.parametrize("degradation", ["bicubic", "photo"])
def test_sampling_goes_on_where_its_state_was_saved(degradation):
    images, options = (noise(140, 150), noise(160, 140)), {"batch": 4, "degradation": degradation}
    first = sampler(*images, **options)
    first.next()
    state = {name: value.clone() for name, value in first.state_dict().items()}
    expected = [first.next() for _ in range(3)]
    second = sampler(*images, **options, seed=99)
    second.load_state_dict(state)
    for lr, hr in expected:
        again_lr, again_hr = second.next()
        assert torch.equal(lr, again_lr)
        assert torch.equal(hr, again_hr)
    assert not torch.equal(expected[0][1], expected[1][1])


def test_shifted_windows_are_the_same_in_all_images_and_move():
    crops, places = sampler(noise(40, 50)), set()
    image = torch.arange(100.0).view(1, 1, 10, 10)
    for _ in range(40):
        first, second = crops.shifted(image, 2 * image, by=2)
        assert first.shape == (1, 1, 8, 8)
        assert torch.equal(second, 2 * first)
        places.add(int(first[0, 0, 0, 0]))
    assert places == {0, 1, 2, 10, 11, 12, 20, 21, 22}
    assert torch.equal(crops.shifted(image, by=0)[0], image)


@pytest.mark.parametrize("degradation", ["bicubic", "photo"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_processes_share_a_batch(degradation, candidates):
    image = noise(140, 150)
    options = {"batch": 6, "degradation": degradation, "candidates": candidates}
    lr, hr = sampler(image, **options).next()
    for rank in range(2):
        share_lr, share_hr = sampler(image, **options, rank=rank, world_size=2).next()
        assert torch.equal(share_lr, lr[rank::2])
        assert torch.equal(share_hr, hr[rank::2])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop": 10}, "multiple of 4, got 10"),
        ({"crop": 0}, "multiple of 4, got 0"),
        ({"crop": 32}, "no image has 48 pixels on both sides"),
        ({"batch": 5, "world_size": 2}, "5 can't be shared by 2"),
        ({"degradation": "photo"}, "no image has 136 pixels on both sides"),
        ({"reductions": (1, 3)}, "no image has 84 pixels on both sides.* and a reduction of 3"),
        ({"reductions": (0,)}, "whole numbers from 1"),
        ({"reductions": ()}, "whole numbers from 1"),
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampler(noise(47, 100), **options)


# --------------------------------------------------------------------------------- packed files


@pytest.fixture
def prepared(tmp_path) -> Path:
    """A dataset as train.prepare writes it: two images to train on, one for validation."""
    images = [noise(5, 7, 0), noise(6, 4, 1), noise(8, 8, 2)]
    index = packed(*images).index.numpy()
    splits = np.array([[0], [1], [0]])
    np.save(tmp_path / INDEX_FILE, np.hstack([index, splits]))
    (tmp_path / IMAGES_FILE).write_bytes(b"".join(image.tobytes() for image in images))
    manifest = {"images": [{"name": f"{i}.png"} for i in range(3)]}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest))
    return tmp_path


def test_packed_images_come_back(prepared):
    training, validation = load_packed(prepared)
    assert (len(training), len(validation)) == (2, 1)
    assert torch.equal(training.image(0), tensor(noise(5, 7, 0)))
    assert torch.equal(training.image(1), tensor(noise(8, 8, 2)))
    assert torch.equal(validation.image(0), tensor(noise(6, 4, 1)))


def test_the_file_stays_as_it_is(prepared):
    before = (prepared / IMAGES_FILE).read_bytes()
    training, _ = load_packed(prepared)
    training.pixels.zero_()
    assert (prepared / IMAGES_FILE).read_bytes() == before


def test_a_dataset_larger_than_the_gpu_is_refused(prepared, monkeypatch):
    def to(self, device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "to", to)
    message = r"holds 0\.0 GB of pixels, more than cuda has room for: .* --limit, --size.* --device"
    with pytest.raises(ValueError, match=message):
        load_packed(prepared, "cuda")


@pytest.mark.parametrize("name", [IMAGES_FILE, INDEX_FILE, MANIFEST_FILE])
def test_missing_files_are_named(prepared, name):
    (prepared / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} missing.*train\.prepare"):
        load_packed(prepared)


def test_files_that_do_not_belong_together_are_refused(prepared):
    with (prepared / IMAGES_FILE).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="damaged"):
        load_packed(prepared)


@pytest.mark.parametrize("name", [INDEX_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("kept", [0, 20, -1])
def test_truncated_files_are_refused(prepared, name, kept):
    contents = (prepared / name).read_bytes().rstrip()
    (prepared / name).write_bytes(contents[:kept])
    with pytest.raises(ValueError, match="damaged"):
        load_packed(prepared)


@pytest.mark.parametrize("column", range(3))
def test_an_index_of_other_images_is_refused(prepared, column):
    index = np.load(prepared / INDEX_FILE)
    index[0, column] += 1
    np.save(prepared / INDEX_FILE, index)
    with pytest.raises(ValueError, match="damaged"):
        load_packed(prepared)


def test_a_manifest_without_images_is_refused(prepared):
    (prepared / MANIFEST_FILE).write_text("[]")
    with pytest.raises(ValueError, match="damaged"):
        load_packed(prepared)


def test_a_gpus_way_to_cut_crops_gives_the_same():
    pixels = torch.randint(256, (2000,), dtype=torch.uint8)[100:]
    first, row_bytes = torch.tensor([0, 33, 1500]), torch.tensor([60, 45, 90])
    squares = [way(pixels, first, row_bytes, 5) for way in (_gather, _copy)]
    assert torch.equal(*squares)
    assert torch.equal(squares[0][1, 2], pixels[33 + 2 * 45 :][:15])
