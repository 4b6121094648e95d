"""Weights on disk and on the Hub <-> `Generator`.

A weights folder, the bundled one and a Hub repository hold the same files: `config.json` with the
size of the network and the sha256 of the rest, `srresnet-x4.safetensors` and
`srgan-x4.safetensors`. Where weights come from is told everywhere by one spec:

    bundled             the folder `weights/` beside this package
    a path              a weights folder, or one .safetensors file
    user/repo[@rev]     a repository on the Hugging Face Hub, at a branch, tag or commit
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from srgan.errors import WeightsError
from srgan.generator import SCALE, Generator, GeneratorConfig

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
SRRESNET_FILE = "srresnet-x4.safetensors"
SRGAN_FILE = "srgan-x4.safetensors"
BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "weights"
WEIGHTS_VARIABLE = "SRGAN_WEIGHTS"
#: What the owner of a Space calls the repository that the Space should use.
SPACE_REPOSITORY = "srgan-x4"
#: Seconds that an unreachable or silent Hub may cost.
HUB_PATIENCE = 5.0

_HUB_SPEC = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Two generators of one size, and where they came from.

    Attributes:
        srresnet: trained on pixel error; `detail` 0.
        srgan: trained against a discriminator; `detail` 1.
        source: `bundled`, a path or a Hub repository.
        revision: commit on the Hub, else None.
        adversarial: whether `srgan` has been through the adversarial stage.
        detail: the recommended one, in [0, 1].
        evaluation: dataset -> network -> metric -> value, as `train.evaluate` measured it.
        notices: what a user should know, in whole sentences.
    """

    srresnet: Generator
    srgan: Generator
    source: str
    revision: str | None = None
    adversarial: bool = True
    detail: float = 1.0
    evaluation: dict
    notices: tuple[str, ...] = ()


def load_weights(spec: str | os.PathLike | None = None, *, fallback: bool = False) -> Weights:
    """Finds, checks and reads weights.

    Args:
        spec: see the module's docstring. None means the environment variable SRGAN_WEIGHTS, else
            on a Space its owner's `srgan-x4` repository if there is one, else `bundled`.
        fallback: use the bundled weights, with a notice, where the spec can't be satisfied.

    Raises:
        WeightsError: the weights can't be found, read or trusted.
    """
    if spec is None:
        spec = os.environ.get(WEIGHTS_VARIABLE) or None
    owner = os.environ.get("SPACE_AUTHOR_NAME")
    if spec is None and owner:
        spec, fallback = f"{owner}/{SPACE_REPOSITORY}", True
    spec = os.fspath(spec) if spec is not None else BUNDLED
    if spec == BUNDLED:
        return replace(_load_folder(BUNDLED_FOLDER), source=BUNDLED)
    try:
        return _load(spec)
    except WeightsError as exc:
        if not fallback:
            raise
        logger.warning("%s Using the bundled weights.", exc)
        bundled = load_weights(BUNDLED)
        notice = f"The bundled weights are in use: {exc}"
        return replace(bundled, notices=(notice, *bundled.notices))


def _load(spec: str) -> Weights:
    path = Path(spec)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        generator = load_generator(path)
        notice = "The weights are a single file, so detail has no effect."
        return Weights(
            srresnet=generator, srgan=generator, source=spec, evaluation={}, notices=(notice,)
        )
    match = _HUB_SPEC.fullmatch(spec)
    if match is None or path.suffix == ".safetensors":
        raise WeightsError(
            f"No weights at {spec!r}. Expected 'bundled', a weights folder, a .safetensors file, "
            f"or user/repo or user/repo@revision on the Hugging Face Hub."
        )
    folder = _download(match["repository"], match["revision"])
    return replace(_load_folder(folder), source=match["repository"], revision=folder.name)


def _load_folder(folder: Path) -> Weights:
    config = _read_config(folder / CONFIG_FILE)
    try:
        architecture = dict(config["architecture"])
        scale = architecture.pop("scale")
        size = GeneratorConfig(**architecture)
        checksums = {name: config["files"][name]["sha256"] for name in (SRRESNET_FILE, SRGAN_FILE)}
        adversarial = config["adversarial"]
        detail = float(config["detail"])
        evaluation = dict(config.get("evaluation", {}))
    except (KeyError, TypeError, ValueError) as exc:
        raise WeightsError(f"{folder / CONFIG_FILE} is not a weights config: {exc!r}.") from exc
    if scale != SCALE or not 0 <= detail <= 1 or not isinstance(adversarial, bool):
        raise WeightsError(
            f"{folder / CONFIG_FILE}: expected scale {SCALE}, detail in [0, 1] and adversarial "
            f"true or false, got {scale}, {detail} and {adversarial}."
        )
    srresnet, srgan = (
        load_generator(folder / name, config=size, sha256=sha256)
        for name, sha256 in checksums.items()
    )
    notices = ()
    if not adversarial:
        notices = (
            "These weights have not been through the adversarial stage: SRGAN here is SRResNet, "
            "sharp but without invented texture, and detail has no effect.",
        )
    return Weights(
        srresnet=srresnet,
        srgan=srgan,
        source=str(folder),
        adversarial=adversarial,
        detail=detail,
        evaluation=evaluation,
        notices=notices,
    )


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise WeightsError(f"{path} is missing: {path.parent} is not a weights folder.") from exc
    except (OSError, ValueError) as exc:
        raise WeightsError(f"{path} can't be read: {exc}.") from exc
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is not a weights config: expected a JSON object.")
    return config


def load_generator(
    path: str | os.PathLike, *, config: GeneratorConfig | None = None, sha256: str | None = None
) -> Generator:
    """Reads one .safetensors file, on the CPU, in evaluation mode.

    Args:
        path: the file.
        config: the size of the network; None takes it from the file's own metadata.
        sha256: the file's expected checksum in hexadecimal; None leaves it unchecked.

    Raises:
        WeightsError: the file is missing, damaged, or holds another network.
    """
    path = Path(path)
    try:
        if sha256 is not None and (actual := _sha256(path)) != sha256:
            raise WeightsError(
                f"{path} is damaged: its sha256 is {actual}, expected {sha256}. Fetch it again."
            )
        with safe_open(path, framework="pt") as file:
            if config is None:
                config = GeneratorConfig(**json.loads((file.metadata() or {})["config"]))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as exc:
        raise WeightsError(f"{path} is missing.") from exc
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"{path} is not a readable safetensors file: {exc}.") from exc
    except (KeyError, TypeError, ValueError) as exc:
        raise WeightsError(
            f"{path} doesn't say which generator it holds: its metadata needs a 'config' with "
            f"channels and blocks."
        ) from exc
    generator = Generator(config)
    expected = generator.state_dict()
    faults = [f"{name} is missing" for name in expected.keys() - state.keys()]
    faults += [f"{name} is not part of it" for name in state.keys() - expected.keys()]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    faults += [
        f"{name} has values that are not finite"
        for name, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(
            f"{path} doesn't fit a generator of {config.channels} channels and {config.blocks} "
            f"blocks: {'; '.join(sorted(faults)[:3])}{more}."
        )
    generator.load_state_dict(state)
    return generator.eval()


def save_generator(
    generator: Generator, path: str | os.PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Writes a generator as one .safetensors file that `load_generator` reads without more.

    Args:
        generator: on any device.
        path: the file, replaced as a whole.
        metadata: further entries of the file's header.
    """
    path = Path(path)
    state = {
        name: value.detach().cpu().contiguous() for name, value in generator.state_dict().items()
    }
    temporary = path.with_name(path.name + ".part")
    save_file(
        state, temporary, {"config": json.dumps(asdict(generator.config)), **(metadata or {})}
    )
    temporary.replace(path)


def save_weights(
    folder: str | os.PathLike,
    srresnet: Generator,
    srgan: Generator,
    *,
    adversarial: bool,
    detail: float = 1.0,
    evaluation: dict | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a weights folder; the arguments are the attributes of `Weights`.

    Raises:
        ValueError: the two generators differ in size, or detail is outside [0, 1].
    """
    if srresnet.config != srgan.config:
        raise ValueError(f"generators differ in size: {srresnet.config} and {srgan.config}")
    if not 0 <= detail <= 1:
        raise ValueError(f"detail must be in [0, 1], got {detail}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_generator(srresnet, folder / SRRESNET_FILE, metadata)
    save_generator(srgan, folder / SRGAN_FILE, metadata)
    config = {
        "architecture": {**asdict(srgan.config), "scale": SCALE},
        "adversarial": adversarial,
        "detail": detail,
        "files": {name: {"sha256": _sha256(folder / name)} for name in (SRRESNET_FILE, SRGAN_FILE)},
        "evaluation": evaluation or {},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(repository: str, revision: str | None) -> Path:
    """Fetches a weights folder from the Hub into its cache, or finds it there.

    The client waits for minutes on a Hub that doesn't answer, so it is asked first for the commit,
    with a time limit; only then are files fetched. Without an answer the cache has to do.

    Returns:
        The folder of the commit in the cache; its name is the commit.
    """
    # Here, because the import takes a quarter of a second and bundled weights don't need it.
    from huggingface_hub import HfApi, snapshot_download

    files = [CONFIG_FILE, SRRESNET_FILE, SRGAN_FILE]

    def fetch(commit: str | None, **options) -> Path:
        return Path(snapshot_download(repository, revision=commit, allow_patterns=files, **options))

    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            folder = fetch(revision, local_files_only=True)
            if all((folder / name).is_file() for name in files):
                return folder
        except Exception:  # not in the cache, in whatever words
            logger.debug("%s@%s is not in the cache", repository, revision)
    try:
        info = _within(
            HUB_PATIENCE,
            lambda: HfApi().model_info(repository, revision=revision, timeout=HUB_PATIENCE),
        )
        return fetch(info.sha)
    except Exception as exc:  # the client's transport errors share no base class between releases
        reason = next(iter(str(exc).strip().splitlines()), "") or type(exc).__name__
        logger.info("the Hub failed (%s), looking into its cache", reason)
        try:
            return fetch(revision, local_files_only=True)
        except Exception:
            raise WeightsError(f"{repository} can't be had from the Hub: {reason}.") from exc


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Calls the function in a thread that is abandoned after so many seconds.

    Raises:
        TimeoutError: it took longer; else whatever the function raises.
    """
    outcome: list = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except Exception as exc:
            outcome.append((None, exc))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
