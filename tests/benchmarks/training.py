"""Throughput of a stage-1 training step: the paper's form against ours, in one run.

    python -m tests.benchmarks.training [--data PREPARED] [--json FILE]

The paper's form: eager, NCHW, float32, BN on the batch's statistics, PyTorch's PReLU, the last 9×9
convolution at four times the resolution. The others add one thing each; the last is the step of
`train.pretrain`. Steps are interleaved, medians compared. With --data it also shows what drawing
and degrading a batch costs on the device.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import train  # noqa: F401  # isort: skip  (before torch: it tells its threads how to wait)
import torch
import torch.nn.functional as F

from srgan.allocator import keep_freed_memory
from srgan.generator import SCALE, Generator, PReLU
from train.data import load_packed
from train.loop import (
    fix_batch_norm,
    make_optimizers,
    make_sampler,
    moving_average,
    update,
    update_average,
)
from train.pretrain import PretrainConfig


def make_step(
    *,
    device: torch.device,
    batch: int,
    side: int,
    reindexed: bool,
    channels_last: bool,
    fixed: bool,
    prelu: bool,
    bf16: bool,
    whole: bool,
) -> Callable[[], None]:
    """A function that does one training step on fixed random crops."""
    torch.manual_seed(0)
    generator = Generator(reindexed_head=reindexed)
    generator.initialize_as_interpolation()
    if not prelu:
        for parent in list(generator.modules()):
            for name, child in parent.named_children():
                if isinstance(child, PReLU):
                    setattr(parent, name, torch.nn.PReLU())
    generator.to(device).train()
    lr = torch.rand(batch, 3, side, side, device=device)
    hr = torch.rand(batch, 3, SCALE * side, SCALE * side, device=device)
    if channels_last:
        generator.to(memory_format=torch.channels_last)
        lr = lr.contiguous(memory_format=torch.channels_last)
    if fixed:
        fix_batch_norm(generator)
    optimizers = [torch.optim.Adam(generator.parameters(), lr=1e-4, fused=channels_last)]
    if whole:
        config = PretrainConfig(data=Path(), out=Path(), steps=1).on(device)
        optimizers = list(make_optimizers(config, generator, device).values())
        average = moving_average(generator)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            sr = generator(lr)
        loss = F.l1_loss(sr.float(), hr)
        if whole:
            update(optimizers, loss, generator, config.clip)
            update_average(average, generator, config.ema)
        else:
            generator.zero_grad()
            loss.backward()
            optimizers[0].step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def make_draw(data: Path, *, device: torch.device, batch: int, side: int) -> Callable[[], None]:
    """A function that draws one batch of a prepared dataset."""
    config = PretrainConfig(data=data, out=Path(), steps=1, crop=SCALE * side, batch=batch)
    sampler = make_sampler(config, load_packed(data, device)[0])

    def draw() -> None:
        sampler.next()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=24, help="of the LR crops in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path, help="folder made by train.prepare")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()  # as train.loop does

    additions = ("reindexed", "channels_last", "fixed", "prelu", "bf16", "whole")
    paper = dict.fromkeys(additions, False)
    variants = {"paper's form": paper}
    variants["+ channels_last"] = {**paper, "channels_last": True}
    variants["+ re-indexed head"] = {**variants["+ channels_last"], "reindexed": True}
    variants["+ fixed BN"] = {**variants["+ re-indexed head"], "fixed": True}
    variants["+ our PReLU"] = {**variants["+ fixed BN"], "prelu": True}
    variants["+ bf16"] = {**variants["+ our PReLU"], "bf16": True}
    variants["+ Muon, clipping, average"] = {**variants["+ bf16"], "whole": True}
    common = {
        "device": torch.device(options.device),
        "batch": options.batch,
        "side": options.side,
    }
    steps = {name: make_step(**common, **variant) for name, variant in variants.items()}
    if options.data:
        steps["(drawing the batch)"] = make_draw(options.data, **common)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat >= 2:  # the first ones build kernels
                seconds[name].append(time.perf_counter() - start)

    pixels = options.batch * options.side**2
    base = statistics.median(seconds["paper's form"])
    results = {}
    print(
        f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end=""
    )
    print(f"batch {options.batch}, LR crops {options.side}×{options.side}\n")
    print("| step | seconds | images/s | LR pixels/s | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in seconds.items():
        median = statistics.median(values)
        results[name] = {"seconds": median, "lr_pixels_per_second": pixels / median}
        speed = f"{options.batch / median:,.1f} | {pixels / median:,.0f}"
        print(f"| {name} | {median:.3f} | {speed} | {base / median:.2f} |")
    if options.data:
        last = list(variants)[-1]
        drawing = results["(drawing the batch)"]["seconds"]
        share = drawing / (drawing + results[last]["seconds"])
        print(f"\nDrawing takes {share:.1%} of the time of a step ({last}).")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
