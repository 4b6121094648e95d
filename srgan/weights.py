"""Weights on disk and on the Hub <-> `Generator`.

A weights folder, the bundled one and a Hub repository hold the same files: `config.json` with the
size of the networks and the sha256 of the rest, `srresnet-x4.safetensors`, `srgan-x4.safetensors`
and, if `config.json` lists it, `srgan-photo-x4.safetensors`. Where weights come from is told
everywhere by one spec:

    bundled             the folder `weights/` beside this package
    a path              a weights folder, or one .safetensors file
    user/repo[@rev]     a repository on the Hugging Face Hub, at a branch, tag or commit

What exists as a path is taken as one.
"""

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from srgan.errors import WeightsError
from srgan.generator import SCALE, Generator, GeneratorConfig
from srgan.hub import HUB_SPEC, NotOnHubError, fetch_files, forget_files

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
SRRESNET_FILE = "srresnet-x4.safetensors"
SRGAN_FILE = "srgan-x4.safetensors"
#: Not every folder has it.
PHOTO_FILE = "srgan-photo-x4.safetensors"
BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "weights"
WEIGHTS_VARIABLE = "SRGAN_WEIGHTS"
#: What the owner of a Space calls the repository that the Space should use.
SPACE_REPOSITORY = "srgan-x4"
#: `stage` in the metadata of a file: the last training that the network has been through.
SRRESNET_STAGE, SRGAN_STAGE = "srresnet", "srgan"

_NOT_ADVERSARIAL = (
    "These weights have not been through the adversarial stage: SRGAN here is SRResNet, "
    "sharp but without invented texture, and detail has no effect."
)


class _DamagedError(WeightsError):
    """A file is not the one that its checksum belongs to."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Two or three generators of one size, and where they came from.

    Attributes:
        srresnet: trained on pixel error; `detail` 0.
        srgan: trained against a discriminator; `detail` 1.
        photo: the same trained on photographs degraded by blur, noise and JPEG; None where there is
            none.
        source: `bundled`, a path or a Hub repository.
        revision: commit on the Hub, else None.
        adversarial: whether `srgan` has been through the adversarial stage.
        detail: the recommended one, in [0, 1].
        evaluation: dataset -> network -> metric -> value, as `train.evaluate` measured it.
        checksums: file of a weights folder -> sha256 in hexadecimal; empty for a single file.
        notices: what a user should know, in whole sentences.
    """

    srresnet: Generator
    srgan: Generator
    photo: Generator | None = None
    source: str
    revision: str | None = None
    adversarial: bool = True
    detail: float = 1.0
    evaluation: dict
    checksums: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


# -------------------------------------------------------------------------------------- loading


def load_weights(spec: str | os.PathLike | None = None, *, fallback: bool = False) -> Weights:
    """Finds, checks and reads weights.

    Args:
        spec: see the module's docstring. None or empty means the environment variable
            SRGAN_WEIGHTS, else on a Space its owner's `srgan-x4` repository if there is one, else
            `bundled`.
        fallback: use the bundled weights, with a notice, where the spec can't be satisfied within
            seconds.

    Raises:
        WeightsError: the weights can't be found, read or trusted.
    """
    spec = os.fspath(spec or os.environ.get(WEIGHTS_VARIABLE) or "")
    space_owner = None if spec else os.environ.get("SPACE_AUTHOR_NAME")
    if space_owner:
        spec, fallback = f"{space_owner}/{SPACE_REPOSITORY}", True
    if spec in ("", BUNDLED):
        return replace(_load_folder(BUNDLED_FOLDER), source=BUNDLED)
    try:
        return _load(spec, hurry=fallback)
    except WeightsError as exc:
        if not fallback:
            raise
        bundled = load_weights(BUNDLED)
        if space_owner and isinstance(exc, NotOnHubError):
            logger.info("%s Using the bundled weights.", exc)
            return bundled
        logger.warning("%s Using the bundled weights.", exc)
        reason, path = str(exc), Path(spec).expanduser()
        if path.is_absolute():  # notices are public
            reason = reason.replace(str(path), path.name)
        notice = f"The bundled weights are in use: {reason}"
        return replace(bundled, notices=(notice, *bundled.notices))


def _load(spec: str, *, hurry: bool) -> Weights:
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        return _load_folder(Path(path))
    if os.path.isfile(path):
        return _load_file(Path(path))
    match = HUB_SPEC.fullmatch(spec)
    if match is None or spec.endswith(".safetensors"):
        raise WeightsError(
            f"No weights at {spec!r}. Expected 'bundled', a weights folder, a .safetensors file, "
            f"or user/repo or user/repo@revision on the Hugging Face Hub."
        )
    return _load_hub(match["repository"], match["revision"], hurry=hurry)


def _load_folder(folder: Path) -> Weights:
    path = folder / CONFIG_FILE
    config = _read_config(path)
    try:
        architecture = dict(config["architecture"])
        scale = architecture.pop("scale")
        if scale != SCALE:
            raise ValueError(f"scale must be {SCALE}, got {scale!r}")
        size = _generator_config(architecture)
        checksums = {name: config["files"][name]["sha256"] for name in _listed_files(config)}
        for name, checksum in checksums.items():
            if not isinstance(checksum, str):
                raise ValueError(f"sha256 of {name} must be hexadecimal, got {checksum!r}")
        adversarial = config["adversarial"]
        if not isinstance(adversarial, bool):
            raise ValueError(f"adversarial must be true or false, got {adversarial!r}")
        detail = float(config["detail"])
        if not 0 <= detail <= 1:
            raise ValueError(f"detail must be in [0, 1], got {detail}")
        evaluation = config.get("evaluation", {})
        _check_evaluation(evaluation)
    except KeyError as exc:
        raise WeightsError(f"{path} is not a weights config: {exc} is missing.") from exc
    except (AttributeError, TypeError, ValueError) as exc:
        raise WeightsError(f"{path} is not a weights config: {exc}.") from exc
    generators = {
        name: load_generator(folder / name, config=size, sha256=checksum)
        for name, checksum in checksums.items()
    }
    return Weights(
        srresnet=generators[SRRESNET_FILE],
        srgan=generators[SRGAN_FILE],
        photo=generators.get(PHOTO_FILE),
        source=str(folder),
        adversarial=adversarial,
        detail=detail,
        evaluation=evaluation,
        checksums=checksums,
        notices=() if adversarial else (_NOT_ADVERSARIAL,),
    )


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise WeightsError(f"{path} is missing: {path.parent} is not a weights folder.") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise WeightsError(f"{path} can't be read: {exc}.") from exc
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is not a weights config: expected a JSON object.")
    return config


def _check_evaluation(evaluation: dict) -> None:
    """Raises AttributeError or ValueError."""
    for dataset, networks in evaluation.items():
        for network, metrics in networks.items():
            for metric, value in metrics.items():
                if type(value) not in (int, float):
                    raise ValueError(
                        f"{metric} of {network} on {dataset} must be a number, got {value!r}"
                    )


def _listed_files(config: dict) -> tuple[str, ...]:
    """The files with the generators; raises KeyError or TypeError."""
    return SRRESNET_FILE, SRGAN_FILE, *([PHOTO_FILE] if PHOTO_FILE in config["files"] else [])


def _generator_config(entries: dict) -> GeneratorConfig:
    """From JSON; raises ValueError."""
    names = [field.name for field in fields(GeneratorConfig)]
    if sorted(entries) != sorted(names):
        raise ValueError(f"the size is told by {' and '.join(names)}, got {entries}")
    for name, value in entries.items():
        if type(value) is not int:
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    return GeneratorConfig(**entries)


def _load_hub(repository: str, revision: str | None, *, hurry: bool) -> Weights:
    folder, notices = fetch_files(repository, revision, CONFIG_FILE, _files_beside, hurry=hurry)
    try:
        weights = _load_folder(folder)
    except WeightsError as exc:
        if isinstance(exc, _DamagedError):
            forget_files(folder, (CONFIG_FILE, SRRESNET_FILE, SRGAN_FILE, PHOTO_FILE))
        # Notices are public, and where the cache lies is nobody's business.
        raise type(exc)(str(exc).replace(str(folder), repository)) from exc
    notices += weights.notices
    return replace(weights, source=repository, revision=folder.name, notices=notices)


def _files_beside(path: Path) -> tuple[str, ...]:
    """What a config lists; nothing for one that is none, which loading it then tells."""
    try:
        return _listed_files(_read_config(path))
    except (WeightsError, KeyError, TypeError):
        return ()


def _load_file(path: Path) -> Weights:
    generator = load_generator(path)
    _, metadata = _read_tensors(path)
    adversarial = metadata.get("stage") != SRRESNET_STAGE
    notice = "The weights are a single file, so detail has no effect."
    return Weights(
        srresnet=generator,
        srgan=generator,
        source=str(path),
        adversarial=adversarial,
        evaluation={},
        notices=(notice,) if adversarial else (_NOT_ADVERSARIAL,),
    )


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
    if sha256 is not None:
        _check_sha256(path, sha256)
    state, metadata = _read_tensors(path)
    if config is None:
        try:
            config = _generator_config(json.loads(metadata["config"]))
        except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as exc:
            raise WeightsError(
                f"{path} doesn't say which generator it holds: its metadata needs a 'config' with "
                f"channels and blocks."
            ) from exc
    if config.blocks > len(state) or config.channels > sum(v.numel() for v in state.values()):
        faults = ["it holds too few values"]  # and nothing is built as large as a config claims
    else:
        with torch.device("meta"):  # no memory, no random numbers: the file has the values
            generator = Generator(config)
        expected = generator.state_dict()
        faults = _faults(state, expected)
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(
            f"{path} doesn't fit a generator of {config.channels} channels and {config.blocks} "
            f"blocks: {'; '.join(faults[:3])}{more}."
        )
    # Copies, for these may be views of the file.
    state = {name: value.to(expected[name].dtype, copy=True) for name, value in state.items()}
    generator.load_state_dict(state, assign=True)
    return generator.eval()


def _check_sha256(path: Path, expected: str) -> None:
    try:
        actual = _sha256(path)
    except FileNotFoundError as exc:
        raise WeightsError(f"{path} is missing.") from exc
    except OSError as exc:
        raise WeightsError(f"{path} can't be read: {exc}.") from exc
    if actual != expected:
        raise _DamagedError(
            f"{path} is damaged: its sha256 is {actual}, expected {expected}. Fetch it again."
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A .safetensors file's tensors and metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, file.metadata() or {}
    except FileNotFoundError as exc:
        raise WeightsError(f"{path} is missing.") from exc
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"{path} is not a readable safetensors file: {exc}.") from exc


def _faults(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What keeps a state from being the expected one, in words, sorted."""
    faults = [f"{name} is missing" for name in expected.keys() - state.keys()]
    faults += [f"{name} is not part of it" for name in state.keys() - expected.keys()]
    for name in expected.keys() & state.keys():
        if state[name].shape != expected[name].shape:
            faults.append(
                f"{name} has shape {tuple(state[name].shape)}, expected "
                f"{tuple(expected[name].shape)}"
            )
        elif not state[name].float().isfinite().all():
            faults.append(f"{name} has values that are not finite")
    return sorted(faults)


# --------------------------------------------------------------------------------------- saving


def save_generator(
    generator: Generator, path: str | os.PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Writes a generator as one .safetensors file that `load_generator` reads without more.

    Args:
        generator: on any device.
        path: the file, replaced as a whole.
        metadata: further entries of the file's header; `stage` is `SRRESNET_STAGE` or
            `SRGAN_STAGE`.

    Raises:
        WeightsError: the file can't be written; what was there before still is.
    """
    state = {
        name: value.detach().cpu().contiguous() for name, value in generator.state_dict().items()
    }
    header = {**(metadata or {}), "config": json.dumps(asdict(generator.config))}
    _write(Path(path), _sorted_metadata(save(state, header)))


def _sorted_metadata(data: bytes) -> bytes:
    """A safetensors file with its metadata in order, so that equal weights are equal bytes.

    safetensors writes the entries in an order that changes from call to call. The file begins with
    the length of its JSON header, in 8 bytes; offsets in the header count from its end.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def save_weights(
    folder: str | os.PathLike,
    srresnet: Generator,
    srgan: Generator,
    *,
    photo: Generator | None = None,
    adversarial: bool,
    detail: float = 1.0,
    evaluation: dict | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a weights folder; the arguments are the attributes of `Weights`.

    Args:
        metadata: further entries of the files' headers.

    Raises:
        ValueError: the generators differ in size, or detail is outside [0, 1].
        WeightsError: a file can't be written.
    """
    for other in (srgan, photo):
        if other is not None and other.config != srresnet.config:
            raise ValueError(f"generators differ in size: {srresnet.config} and {other.config}")
    if not 0 <= detail <= 1:
        raise ValueError(f"detail must be in [0, 1], got {detail}")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise WeightsError(f"{folder} can't be made: {exc.strerror}.") from exc
    files = {
        SRRESNET_FILE: (srresnet, SRRESNET_STAGE),
        SRGAN_FILE: (srgan, SRGAN_STAGE if adversarial else SRRESNET_STAGE),
    }
    if photo is not None:
        files[PHOTO_FILE] = (photo, SRGAN_STAGE)
    for name, (generator, stage) in files.items():
        save_generator(generator, folder / name, {**(metadata or {}), "stage": stage})
    config = {
        "architecture": {**asdict(srgan.config), "scale": SCALE},
        "adversarial": adversarial,
        "detail": detail,
        "files": {name: {"sha256": _sha256(folder / name)} for name in files},
        "evaluation": evaluation or {},
    }
    _write(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise WeightsError(f"{path} can't be written: {exc.strerror or exc}.") from exc
