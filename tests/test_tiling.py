import pytest
import torch

from srgan import Cancelled
from srgan.generator import GeneratorConfig, InferenceGenerator, fold
from srgan.tiling import _cover, enlarge_tiled


@pytest.fixture(scope="module")
def network(make_generator):
    return InferenceGenerator(fold(make_generator(seed=4)))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    "height, width, body_tile, tail_tile",
    [
        (1, 1, 1, 1),
        (3, 5, 1, 1),
        (3, 5, 512, 64),
        (1, 400, 64, 16),
        (400, 1, 64, 64),
        (31, 29, 13, 7),
        (37, 53, 53, 2),
        (40, 40, 20, 64),
        (40, 40, 8, 20),
        (41, 40, 40, 40),
    ],
)
def test_tiled_output_equals_whole_image(network, height, width, body_tile, tail_tile):
    lr = torch.rand(1, 3, height, width)
    sr = enlarge_tiled(network, lr, body_tile=body_tile, tail_tile=tail_tile)
    torch.testing.assert_close(sr, network(lr), rtol=0, atol=1e-5)


def test_full_size_network_tiles_exactly(make_generator):
    network = InferenceGenerator(fold(make_generator(seed=5, config=GeneratorConfig())))
    lr = torch.rand(1, 3, 50, 91)
    sr = enlarge_tiled(network, lr, body_tile=46, tail_tile=23)
    torch.testing.assert_close(sr, network(lr), rtol=0, atol=1e-5)


def test_too_narrow_a_halo_shows_at_the_seams(network, monkeypatch):
    """That the tests above could fail, and where the seams are."""
    lr = torch.rand(1, 3, 60, 20)
    monkeypatch.setattr(network, "body_halo", 3)
    seen = network.body_halo + network.tail_halo
    rows, columns = (_cover(slice(0, side), 14, seen) for side in (60, 20))
    assert len(rows) > 1 and len(columns) == 1
    sr = enlarge_tiled(network, lr, body_tile=14, tail_tile=14)
    wrong = (sr - network(lr)).abs().amax((0, 1)) > 1e-5  # (240, 80)
    seam = 4 * rows[0][0].stop
    assert wrong[seam - 2 : seam + 2].all()
    assert not wrong[: seam - 30].any()


@pytest.mark.parametrize("size", [(70, 45), (45, 70), (300, 9), (9, 300), (33, 33), (150, 150)])
def test_no_tile_is_larger_than_asked_for(network, monkeypatch, size):
    shapes = {"body": [], "tail": []}

    def recorded(name):
        function = getattr(network, name)

        def call(x, *args, **options):
            shapes[name].append(x.shape[2:])
            return function(x, *args, **options)

        return call

    for name in shapes:
        monkeypatch.setattr(network, name, recorded(name))
    enlarge_tiled(network, torch.rand(1, 3, *size), body_tile=32, tail_tile=8)
    seen = network.body_halo + network.tail_halo
    assert max(side for shape in shapes["body"] for side in shape) <= 32 + 2 * seen
    assert max(side for shape in shapes["tail"] for side in shape) <= 8 + 2 * network.tail_halo


@pytest.mark.parametrize("start, side, halo", [(0, 1, 1), (0, 8, 3), (5, 13, 6), (7, 64, 3)])
def test_equally_long_windows_cover_a_span(start, side, halo):
    for length in range(1, 5 * side + 2 * halo):
        span = slice(start, start + length)
        cover = _cover(span, side, halo)
        parts, windows = zip(*cover, strict=True)
        assert [part.start for part in parts] == [start, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == span.stop and all(part.start < part.stop for part in parts)
        (window,) = {window.stop - window.start for window in windows}
        assert window <= side + 2 * halo
        assert (len(cover) == 1) == (length <= side + 2 * halo)
        for part, window in cover:
            assert span.start <= window.start and window.stop <= span.stop
            assert part.start - window.start >= halo or part.start == window.start == span.start
            assert window.stop - part.stop >= halo or part.stop == window.stop == span.stop


def test_there_are_few_shapes(network, monkeypatch):
    """For each of them oneDNN compiles code."""
    shapes = []
    tail = network.tail
    monkeypatch.setattr(network, "tail", lambda x, *rest: shapes.append(x.shape) or tail(x, *rest))
    enlarge_tiled(network, torch.rand(1, 3, 101, 83), tail_tile=8)
    assert len(shapes) > 100 and len(set(shapes)) == 1


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (45, 70)])
def test_progress_rises_from_above_zero_to_exactly_one(network, size):
    fractions = []
    enlarge_tiled(
        network, torch.rand(1, 3, *size), body_tile=32, tail_tile=8, progress=fractions.append
    )
    assert fractions[0] > 0
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert fractions.count(1) == 1


def test_progress_is_called_often(network):
    fractions = []
    enlarge_tiled(
        network, torch.rand(1, 3, 64, 64), body_tile=32, tail_tile=16, progress=fractions.append
    )
    assert len(fractions) == 4 * (network.depth + 4)  # four tiles of the body in four each
    steps = torch.tensor([0.0, *fractions]).diff()
    assert steps.min() > 0
    assert steps.max() < 0.2


def test_what_progress_raises_ends_the_work(network):
    calls = []

    def stop(fraction):
        calls.append(fraction)
        if len(calls) == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        enlarge_tiled(network, torch.rand(1, 3, 30, 30), body_tile=10, tail_tile=5, progress=stop)
    assert len(calls) == 3


@pytest.mark.parametrize("tiles", [{"body_tile": 0}, {"tail_tile": -4}])
def test_empty_tiles_are_refused(network, tiles):
    with pytest.raises(ValueError, match="at least 1 pixel"):
        enlarge_tiled(network, torch.rand(1, 3, 4, 4), **tiles)
