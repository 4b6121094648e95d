"""The training loop of both stages: schedule, precision, many GPUs, resuming, logs."""

import contextlib
import copy
import inspect
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from srgan.allocator import keep_freed_memory
from srgan.back_projection import back_project
from srgan.generator import SCALE, Generator, InferenceGenerator, fold
from srgan.hub import HUB_SPEC
from srgan.metrics import psnr_y
from train.checkpoint import LAST_FILE, CheckpointError, load_checkpoint, save_checkpoint
from train.data import CropSampler, Degradation, PackedImages, load_packed, make_lr
from train.device import exact_float32
from train.muon import Muon
from train.push import BackgroundPush
from train.samples import add_samples

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
CONFIG_FILE = "config.json"
#: Of a training, in which the learning rate rises at most.
WARMUP_SHARE = 0.05


class TrainingError(Exception):
    """Training can't go on; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings that both stages share."""

    #: Batch and learning rate on a CPU and on a GPU; the latter are not measured.
    ON_CPU: ClassVar[tuple[int, float]]
    ON_GPU: ClassVar[tuple[int, float]]

    data: Path
    """Folder made by train.prepare."""
    out: Path
    """Folder of the run: checkpoint, log and weights. If it holds a checkpoint, the run resumes."""
    steps: int | None = None
    """Length of the training in steps, which makes it repeatable; either this or --minutes."""
    minutes: float | None = None
    """Length of the training by the clock; the learning rate is planned to end with it."""
    degradation: Degradation = "bicubic"
    """What makes the low-res crops: bicubic, or for photographs as users bring them blur, noise and
    JPEG too (`train.photograph`)."""
    crop: int = 96
    """Side of the HR crops in pixels."""
    reductions: tuple[int, ...] = (1,)
    """Factors by which the originals are reduced before they are cropped, one drawn for each batch:
    1 2 shows the network photographs at half their size too, whose detail is denser than that of
    many megapixels (cf. the scales of Wang et al. 2021, Real-ESRGAN)."""
    candidates: int = 4
    """Random crops looked at for each that is learnt from, the one with the most detail: most of a
    photograph is flat, and teaches nothing. With 1 all crops are equally likely."""
    batch: int | None = None
    """Crops a step, over all GPUs together; by default 8 on a CPU, on a GPU 32 in stage 1 and 16
    in stage 2, whose preset `paper` has 16 on a CPU too."""
    learning_rate: float | None = None
    """At the top of its curve: linear warm-up, then half a cosine. By default 5e-4 in stage 1 and
    1e-4 in stage 2."""
    optimizer: Literal["muon", "adam"] = "muon"
    """Of the generator's convolutions between hidden layers; all else is Adam's."""
    beta2: float = 0.99
    """Adam's decay a step of the mean square of the gradients."""
    warmup: int = 200
    """Steps in which the learning rate rises, or a twentieth of the training if that is shorter."""
    ema: float = 0.999
    """Decay a step of the moving average of the weights, which is the result; less in the first
    steps, so that a short training's result is not its start."""
    clip: float | None = 1.0
    """Largest gradient norm; longer gradients are shortened to it, with None never."""
    validate_every: int = 500
    """Steps between validations; each also writes the checkpoint, sample pictures and, if it is
    the best so far, the weights."""
    validation_images: int = 16
    """Held-out images to validate on."""
    seed: int = 0
    """Of the first weights and of the crops."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Of the convolutions; auto is bf16 where the hardware multiplies in it."""
    compile: bool = False
    """torch.compile the generator."""
    push_to: str | None = None
    """Hub repository, user/repo or user/repo@branch, that the best weights so far, the settings and
    the log go to, as runs/NAME-OF-OUT. A new one becomes private. A Hub that fails is a warning."""
    push_every: float | None = None
    """Minutes between two uploads at least; each follows a validation. Without it there is one, at
    the end."""

    def __post_init__(self):
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either --steps or --minutes")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        for name in ("steps", "minutes", "learning_rate", "clip", "push_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("batch", "warmup", "validate_every", "validation_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("ema", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if self.push_to and not HUB_SPEC.fullmatch(self.push_to):
            raise ValueError(f"push_to must be user/repo or user/repo@branch, got {self.push_to!r}")
        if self.push_every and not self.push_to:
            raise ValueError("push_every needs push_to")

    def on(self, device: torch.device) -> "TrainingConfig":
        """These settings with what was left to the device filled in."""
        batch, learning_rate = self.ON_CPU if device.type == "cpu" else self.ON_GPU
        return replace(
            self,
            batch=self.batch or batch,
            learning_rate=self.learning_rate or learning_rate,
        )

    def progress(self, step: int, seconds: float) -> float:
        """Share of the training that is done, 1 or more when it is over."""
        return step / self.steps if self.steps else seconds / (60 * self.minutes)

    def rate(self, step: int, seconds: float) -> float:
        """Factor in [0, 1] on the learning rate at this step."""
        progress = self.progress(step, seconds)
        warm = max((step + 1) / self.warmup, progress / WARMUP_SHARE)
        return min(1.0, warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def decay(self, step: int) -> float:
        """Of the moving average at this step."""
        return min(self.ema, (1 + step) / (10 + step))


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes that train together (`torchrun`), or this one alone."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes."""
        if self.size == 1:
            return module
        # Buffers (statistics of BN) are each process's own, or fixed.
        option = "forward_sync_buffers"
        if option not in inspect.signature(DistributedDataParallel).parameters:
            option = "broadcast_buffers"  # its name before torch 2.13
        return DistributedDataParallel(module, **{option: False})

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the first dimension in all processes, with gradients to all of them."""
        mean = values.mean(0)
        return mean if self.size == 1 else _MeanOfProcesses.apply(mean)

    def broadcast(self, value: Any) -> Any:
        """What the main process has, in all of them."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The main process's clock, and whether any process wants to stop."""
        if self.size == 1:
            return seconds, stop
        # On the CPU: to read them, a GPU would be waited for at each step.
        votes = torch.tensor([seconds if self.main else 0.0, float(stop)], dtype=torch.float64)
        dist.all_reduce(votes)
        return votes[0].item(), votes[1].item() > 0


class _MeanOfProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value / dist.get_world_size()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _MeanOfProcesses.apply(gradient)


@contextlib.contextmanager
def join_world(device: str) -> Iterator[World]:
    """Joins the processes that torchrun started, or stands alone.

    Keeps freed memory for training, and float32 exact. Of several processes only the main one
    tells how it goes.

    Args:
        device: `auto` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
        TrainingError: what is done here needs more memory than the GPU has.
    """
    keep_freed_memory()
    exact_float32()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if size == 1:
        with _memory_errors_explained():
            yield World(rank=0, size=1, device=_existing_device(device))
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    if dist.get_rank():
        logging.disable(logging.INFO)
    try:
        with _memory_errors_explained():
            yield World(rank=dist.get_rank(), size=size, device=torch.device(device))
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _memory_errors_explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise TrainingError(
            "out of GPU memory: lower --batch or --crop, or give another --device"
        ) from exc


def _existing_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as exc:
        raise ValueError(f"device {name} is not available here: {exc}") from exc


def use_bf16(config: TrainingConfig, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """Context in which convolutions run in the configured precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(config, device))


def load_data(config: TrainingConfig, world: World) -> tuple[CropSampler, PackedImages]:
    """The sampler of training crops for this process, and the validation images."""
    training_images, validation_images = load_packed(config.data, world.device)
    if not len(validation_images):
        raise ValueError(f"{config.data} holds no validation images: prepare it with some")
    sampler = make_sampler(config, training_images, world.rank, world.size)
    return sampler, validation_images


def make_sampler(
    config: TrainingConfig, images: PackedImages, rank: int = 0, world_size: int = 1
) -> CropSampler:
    """The configured crops from their first on; by default whole batches."""
    return CropSampler(
        images,
        crop=config.crop,
        batch=config.batch,
        generator=torch.Generator().manual_seed(config.seed),
        degradation=config.degradation,
        reductions=config.reductions,
        candidates=config.candidates,
        rank=rank,
        world_size=world_size,
    )


def fix_batch_norm(module: nn.Module) -> None:
    """Lets every BN use its stored statistics for good, also while training.

    What remains of it is a scale and an offset for each channel: still the paper's network, but
    without the dependence on the batch that Lim et al. 2017 (EDSR) and Wang et al. 2018 (ESRGAN)
    found harmful in super-resolution.
    """
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()


@torch.no_grad()
def measure_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the statistics of every BN to their mean over the batches.

    Without this a new network whose BN is fixed would have branches of far smaller values than
    its trunk, and hardly use its depth.

    Args:
        module: left in training mode.
        batches: inputs of the module.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
    module.train()
    for batch in batches:
        module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def center_colors(generator: Generator, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Changes the bias of the last convolution so that results have the originals' mean colour.

    Losses of features and of a discriminator don't hold it; it drifts by about a level of 8 bits,
    the same in all pictures.

    Args:
        generator: changed in its head alone.
        pairs: LR (N, 3, h, w) and HR (N, 3, 4h, 4w).
    """
    errors = [(hr - generator(lr)).mean((0, 2, 3)) for lr, hr in pairs]
    generator.head.bias += torch.stack(errors).mean(0)


def make_optimizers(
    config: TrainingConfig, generator: Generator, device: torch.device
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers that share the generator's parameters, by name: adam, and muon if wanted."""
    matrices, others = [], []
    for parameter in generator.parameters():
        hidden = parameter.dim() == 4 and min(parameter.shape[:2]) > 3  # 3 are the colours
        (matrices if hidden and config.optimizer == "muon" else others).append(parameter)
    optimizers = {"adam": make_adam(config, others)}
    if matrices:
        dtype = torch.bfloat16 if use_bf16(config, device) else torch.float32
        optimizers["muon"] = Muon(matrices, learning_rate=config.learning_rate, dtype=dtype)
    return optimizers


def make_adam(config: TrainingConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
    """Adam as configured."""
    betas = 0.9, config.beta2
    return torch.optim.Adam(parameters, lr=config.learning_rate, betas=betas, fused=True)


def moving_average(generator: Generator) -> Generator:
    """The generator as it is now, to be brought after it by `update_average`."""
    return copy.deepcopy(generator).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Brings weights and statistics of `average` nearer to the module's; its counters are copied.

    Args:
        average: from `moving_average`.
        module: of the same form.
        decay: how much of `average` stays, in [0, 1].
    """
    pairs = list(zip(*([*m.parameters(), *m.buffers()] for m in (average, module)), strict=True))
    averaged, current = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    torch._foreach_lerp_(averaged, current, 1 - decay)
    counters = [pair for pair in pairs if not pair[0].is_floating_point()]
    if counters:
        torch._foreach_copy_(*zip(*counters, strict=True))


def update(
    optimizers: Iterable[torch.optim.Optimizer],
    loss: Tensor,
    module: nn.Module,
    clip: float | None,
) -> Tensor:
    """One step of the optimisers on the module's parameters.

    Returns:
        The gradient's norm before it was clipped.
    """
    module.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), math.inf if clip is None else clip)
    for optimizer in optimizers:
        optimizer.step()
    return norm


def finish(sr: Tensor, lr: Tensor, degradation: Degradation) -> Tensor:
    """What Upscaler makes of a network's result (N, 3, 4h, 4w): of photo's nothing else."""
    if degradation == "photo":
        return sr
    sr = sr.clone()
    back_project(sr, lr)
    return sr


@torch.no_grad()
def validation_pairs(
    generator: Generator, images: PackedImages, config: TrainingConfig, *, side: int = 256
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Enlarges the middles of the first held-out images in float32, as Upscaler does.

    Args:
        generator: run in its inference form; not changed.
        images: held-out images.
        config: how many of them, and of which degradation.
        side: images are cut to at most this many pixels a side.

    Yields:
        LR (1, 3, h, w), SR and HR (1, 3, 4h, 4w) in [0, 1], on the device of the images.
    """
    network = InferenceGenerator(fold(generator)).to(images.pixels.device)
    for i in range(min(config.validation_images, len(images))):
        hr = _middle(images.image(i), side)
        lr = make_lr(hr, config.degradation, [i])
        yield lr, finish(network(lr), lr, config.degradation).clamp(0, 1), hr


def mean_psnr(pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float:
    """PSNR-Y in dB, mean over `validation_pairs`; 100 for an image that is met exactly."""
    return sum(min(psnr_y(sr, hr), 100.0) for _, sr, hr in pairs) / len(pairs)


def _middle(image: Tensor, side: int) -> Tensor:
    """Cuts the middle out of (N, 3, H, W), at most `side` a side and a multiple of the scale."""
    height, width = (min(length, side) // SCALE * SCALE for length in image.shape[2:])
    top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
    return image[:, :, top : top + height, left : left + width]


def run(
    config: TrainingConfig,
    world: World,
    *,
    generator: Generator,
    stateful: dict[str, Any],
    optimizers: list[torch.optim.Optimizer],
    step: Callable[[], dict[str, Tensor]],
    validation_images: PackedImages,
    measure: Callable[[list[tuple[Tensor, Tensor, Tensor]]], dict[str, float]],
    save_best: Callable[[Generator, int], None],
    score: str,
) -> float:
    """Trains until the schedule ends or SIGTERM or Ctrl-C comes; resumes where a run stopped.

    Args:
        config: the stage's settings, saved beside the results.
        world: the processes that train together.
        generator: what is trained; the result is the moving average of its weights.
        stateful: what else changes in training, by name; each with state_dict, load_state_dict.
        optimizers: those whose learning rate follows the schedule.
        step: does one step; returns what to log, scalar tensors.
        validation_images: held-out images.
        measure: the average's `validation_pairs` -> what to log.
        save_best: writes the average's weights; called with it and the step after the best
            validation so far.
        score: name of the measurement that should be large.

    Returns:
        The best score.

    Raises:
        TrainingError: a loss or a measurement is not finite; the last checkpoint is from before.
        TrainingError: another file can't be written.
        CheckpointError: a checkpoint can't be read or written.
    """
    average = moving_average(generator)
    stateful = {"generator": generator, "average": average, **stateful}
    checkpoint = config.out / LAST_FILE
    done, best, earlier = _resume(stateful, checkpoint, world)
    started = time.monotonic() - earlier
    logged: list[dict[str, Tensor]] = []  # since the last validation, on the device
    rate = 0.0

    def seconds() -> float:
        return time.monotonic() - started

    with contextlib.ExitStack() as stack:
        stack.enter_context(_disk_errors_explained(checkpoint))
        background = None
        if world.main and config.push_to:
            background = BackgroundPush(config.push_to, config.push_every)
            stack.callback(lambda: background.finish(_results(config.out)))
        stop = stack.enter_context(_StopOnSignal())
        if world.main:
            config.out.mkdir(parents=True, exist_ok=True)
            settings = json.dumps(asdict(config), indent=2, default=str, allow_nan=False)
            (config.out / CONFIG_FILE).write_text(settings + "\n", encoding="utf-8")
            writer = stack.enter_context(SummaryWriter(config.out, purge_step=done))
        bar = stack.enter_context(
            tqdm(total=config.steps, initial=done, unit="step", disable=not world.main or None)
        )
        while True:
            now, stopped = world.agree(seconds(), stop.requested)
            finished = stopped or config.progress(done, now) >= 1
            if logged and (finished or done % config.validate_every == 0):
                if world.main:
                    pairs = list(validation_pairs(average, validation_images, config))
                    entry = _means(logged) | measure(pairs)
                    _check_finite(entry, done, checkpoint)
                    if entry[score] > best:
                        best = entry[score]
                        save_best(average, done)
                    state = {name: item.state_dict() for name, item in stateful.items()}
                    state |= {"step": done, "best": best, "seconds": seconds()}
                    save_checkpoint(state, checkpoint)
                    entry = {"seconds": round(seconds()), "learning_rate": rate, **entry}
                    _log(config.out, writer, done, entry, pairs)
                    bar.set_postfix({score: f"{entry[score]:.3f}", "best": f"{best:.3f}"})
                    if background:
                        background.offer(_results(config.out))
                logged.clear()
            if finished:
                return best
            rate = config.learning_rate * config.rate(done, now)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            logged.append(step())
            update_average(average, generator, config.decay(done))
            done += 1
            bar.update()
            if config.minutes:
                bar.total = round(done / max(config.progress(done, seconds()), 1e-9))
            if bar.format_dict["rate"]:
                bar.set_description(f"{config.batch * bar.format_dict['rate']:.0f} images/s", False)


def _resume(stateful: dict[str, Any], checkpoint: Path, world: World) -> tuple[int, float, float]:
    """Brings all to the state of the main process's checkpoint, where there is one.

    Returns:
        Steps done, best score, seconds taken.
    """
    state = None
    if world.main and checkpoint.exists():
        state = load_checkpoint(checkpoint)
    state = world.broadcast(state)
    if state is None:
        return 0, -math.inf, 0.0
    try:
        for name, item in stateful.items():
            item.load_state_dict(state[name])
        resumed = state["step"], state["best"], state["seconds"]
    except torch.OutOfMemoryError:  # a RuntimeError too
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise CheckpointError(
            f"{checkpoint} is of another stage or optimiser, of networks of another size, or "
            f"of an older version. Give the settings in {checkpoint.with_name(CONFIG_FILE)} again, "
            f"or another --out."
        ) from exc
    logger.info("resumed at step %d", state["step"])
    return resumed


def _means(logged: list[dict[str, Tensor]]) -> dict[str, float]:
    return {
        name: torch.stack([entry[name] for entry in logged]).float().mean().item()
        for name in logged[0]
    }


def _check_finite(entry: dict[str, float], step: int, checkpoint: Path) -> None:
    for name, value in entry.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} in the steps before {step}: lower --learning-rate. "
                f"{_kept(checkpoint)}"
            )


def _kept(checkpoint: Path) -> str:
    if checkpoint.exists():
        return f"The last good state is in {checkpoint}."
    return "There is no good state yet."


@contextlib.contextmanager
def _disk_errors_explained(checkpoint: Path) -> Iterator[None]:
    """Names the folder, which an error in writing to an open file doesn't.

    TensorBoard writes in a thread, which would print what the main one is told too.
    """
    hook = threading.excepthook
    threading.excepthook = lambda args: isinstance(args.exc_value, OSError) or hook(args)
    try:
        yield
    except OSError as exc:
        raise TrainingError(
            f"can't write to {checkpoint.parent}: {exc}. {_kept(checkpoint)}"
        ) from exc
    finally:
        threading.excepthook = hook


def _log(
    out: Path,
    writer: SummaryWriter,
    step: int,
    entry: dict[str, float],
    pairs: list[tuple[Tensor, Tensor, Tensor]],
) -> None:
    """Tells the log, TensorBoard and the user; sample pictures are TensorBoard's alone."""
    with (out / LOG_FILE).open("a", encoding="utf-8") as log:
        log.write(json.dumps({"step": step, **entry}, allow_nan=False) + "\n")
    for name, value in entry.items():
        writer.add_scalar(name, value, step)
    add_samples(writer, step, pairs)
    writer.flush()
    logger.info("step %d, %s", step, ", ".join(f"{k} {v:.4g}" for k, v in entry.items()))


def _results(out: Path) -> dict[str, Path]:
    """What of a run's folder goes to the Hub: path there -> file here."""
    files = [*sorted(out.glob("*.safetensors")), out / CONFIG_FILE, out / LOG_FILE]
    return {f"runs/{out.resolve().name}/{file.name}": file for file in files if file.exists()}


class _StopOnSignal:
    """Turns SIGTERM and Ctrl-C into a flag, so that the step and a checkpoint are finished."""

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> "_StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, *_) -> None:
        self.requested = True
