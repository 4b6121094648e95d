"""What several test modules share."""

import os

# Before the first import of huggingface_hub: no test reaches the real Hub. Port 9 answers nobody.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# The same on every processor; also where a fixture of a module makes an Upscaler.
os.environ["SRGAN_PRECISION"] = "float32"

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants
from torch import nn

from srgan import Generator, GeneratorConfig, save_weights
from train.data import IMAGES_FILE, INDEX_FILE, MANIFEST_FILE

TINY = GeneratorConfig(channels=8, blocks=2)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in ("SRGAN_WEIGHTS", "SRGAN_MAX_PIXELS", "SRGAN_MAX_BYTES", "SPACE_AUTHOR_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def same_random_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_generator() -> Callable[..., Generator]:
    """Makes generators that enlarge roughly, with nothing left at its default value."""

    def make(seed: int = 0, config: GeneratorConfig = TINY) -> Generator:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            generator = Generator(config)
            generator.initialize_as_interpolation()
            for parameter in generator.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            for module in generator.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.normal_(0, 0.3)
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 2)
                elif isinstance(module, nn.PReLU):
                    module.weight.uniform_(0.05, 0.5)
        return generator.eval()

    return make


@pytest.fixture(scope="session")
def tiny_weights(make_generator, tmp_path_factory) -> Path:
    """A weights folder with two small, different networks and a recommended detail of 0.75."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(folder, make_generator(1), make_generator(2), adversarial=True, detail=0.75)
    return folder


@pytest.fixture(scope="session")
def tiny_photo_weights(make_generator, tmp_path_factory) -> Path:
    """The same with a third network, photo."""
    folder = tmp_path_factory.mktemp("photo-weights")
    networks = make_generator(1), make_generator(2)
    save_weights(folder, *networks, photo=make_generator(5), adversarial=True, detail=0.75)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A prepared dataset of four smooth random images, one of them for validation."""
    folder = tmp_path_factory.mktemp("prepared")
    side = 80
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    images = [
        np.stack([127 + 100 * np.sin(rows * a + columns * b) for a, b in waves], 2).astype(np.uint8)
        for waves in random.uniform(0.05, 0.7, (4, 3, 2))
    ]
    (folder / IMAGES_FILE).write_bytes(b"".join(image.tobytes() for image in images))
    size = 3 * side**2
    np.save(folder / INDEX_FILE, [(i * size, side, side, int(i == 3)) for i in range(4)])
    manifest = {"images": [{"name": f"{i}.png"} for i in range(4)]}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def local_hub(monkeypatch, tmp_path) -> Iterator[HubServer]:
    """A Hub of the test's own, an empty cache, and no token unless the test sets HF_TOKEN."""
    server = HubServer()
    use_endpoint(monkeypatch, server.url, tmp_path / "cache")
    yield server
    server.stop()


def use_endpoint(monkeypatch, url: str, cache: Path) -> None:
    """What the environment would do, had it been set before the client was imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
