"""Speed and memory of enlarging: the network as in the paper, ours, and other runtimes.

    pip install -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.inference [--sizes 128 256 512] [--busy 1] [--datasets Set5 Set14]
        [--json FILE]

All have the same weights, image and number of threads, and but for `int8` compute in float32. Each
runs in a process of its own, as people have it: the threads of several runtimes in one process slow
each other down; --busy lets other programs want the processors too. Runs are interleaved and
medians compared; before that the results are checked to be equal. A runtime that is not installed
is left out. GFLOP/s count the operations of the paper's graph, whatever a runtime makes of it; the
peak is what a matrix product reaches here, and one convolution of 64 channels to 64 is measured
beside it. The first picture of a size, for which runtimes make something ready, is told apart, and
memory is the peak of the process after it. What int8 loses is measured on
folders of high-res images, by `train.evaluate`.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from srgan import int8
from srgan.allocator import keep_freed_memory
from srgan.back_projection import back_project
from srgan.generator import Generator
from srgan.upscaler import Upscaler
from srgan.weights import load_weights

#: Heights and widths in pixels that are measured by default.
SIZES = [(128, 128), (251, 183), (256, 256), (512, 512)]
#: Largest difference between two results that rounding explains.
TOLERANCE = 1e-4
#: How often a thread of libgomp looks for work before it sleeps, by default; `srgan` has less.
LIBGOMP_SPINS = "300000"
#: Seconds between two runs, in which the threads of the first stop waiting for more work.
PAUSE = 0.05
Engine = Callable[[Tensor], Tensor]  # (1, 3, h, w) in [0, 1] -> (1, 3, 4h, 4w)


def paper(weights: str, folder: Path) -> Engine:
    """As published: eager, NCHW, batch normalisation, the last convolution at full resolution."""
    return torch.inference_mode()(_generator(weights))


def ours(weights: str, folder: Path) -> Engine:
    """As people run it, but in float32."""
    return _enlarge(weights, "float32")


def ours_int8(weights: str, folder: Path) -> Engine:
    return _enlarge(weights, "int8")


def onnxruntime(weights: str, folder: Path) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        folder / ONNX_FILE, options, providers=["CPUExecutionProvider"]
    )
    return lambda lr: torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0])


def openvino(weights: str, folder: Path) -> Engine:
    import openvino

    model = openvino.Core().compile_model(
        folder / ONNX_FILE,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the processor has it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    return lambda lr: torch.from_numpy(model(lr.numpy())[0])


def ncnn(weights: str, folder: Path) -> Engine:
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = torch.get_num_threads()
    for precision in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{precision}", False)
    # Else its 9×9 convolution takes 20 GB for a picture of 256×256, and more time.
    network.opt.use_sgemm_convolution = False
    path = folder / NCNN_FILE
    network.load_param(str(path.with_suffix(".ncnn.param")))
    network.load_model(str(path.with_suffix(".ncnn.bin")))

    def run(lr: Tensor) -> Tensor:
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(lr[0].numpy()))
        return torch.from_numpy(np.array(extractor.extract("out0")[1]))[None]

    return run


ONNX_FILE, NCNN_FILE = "generator.onnx", "generator.pt"
ENGINES = {f.__name__: f for f in (paper, ours, ours_int8, onnxruntime, openvino, ncnn)}


def _generator(weights: str) -> Generator:
    return load_weights(weights).srresnet.eval()


def _enlarge(weights: str, precision: str) -> Engine:
    upscaler = Upscaler(weights, "cpu", precision=precision)
    return torch.inference_mode()(partial(upscaler.enlarge, detail=0))


def export(names: list[str], weights: str, folder: Path) -> None:
    """Writes the paper's graph in the formats that these engines read."""
    generator, lr = _generator(weights), torch.rand(1, 3, 64, 64)
    if {"onnxruntime", "openvino"} & set(names):
        sides = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
        path = folder / ONNX_FILE
        torch.onnx.export(
            generator, (lr,), path, input_names=["lr"], dynamic_shapes=(sides,), verbose=False
        )
    if "ncnn" in names:
        import pnnx

        pnnx.export(generator, str(folder / NCNN_FILE), lr, fp16=False)


def operations(generator: Generator) -> int:
    """Floating-point operations of the paper's graph for one LR pixel."""
    total = 0
    for name, parameter in generator.named_parameters():
        if parameter.dim() == 4:
            pixels = {"upsample2": 4, "head": 16}.get(name.split(".")[0], 1)
            total += 2 * pixels * parameter.numel()
    return total


def matmul_peak(side: int = 1536, repeats: int = 7) -> float:
    """GFLOP/s of the fastest matrix product."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e9


def best_convolution(side: int = 128, repeats: int = 7) -> float:
    """GFLOP/s of a 3×3 convolution from 64 channels to 64, in place of a whole network."""
    conv = torch.nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.rand(1, 64, side, side).contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            start = time.perf_counter()
            conv(x)
            seconds.append(time.perf_counter() - start)
    return 2 * conv.weight.numel() * side**2 / min(seconds) / 1e9


def lost_by_int8(weights: str, datasets: list[Path]) -> list[tuple[str, str, float, float]]:
    """What int8 loses on folders of high-res images, clean and as photographs.

    Returns:
        (dataset, network, mean PSNR-Y in dB of float32, of int8).
    """
    from train.evaluate import LABELS, EvaluateConfig, evaluate

    rows = []
    for degradation in ("bicubic", "photo"):
        exact, rounded = (
            evaluate(
                EvaluateConfig(
                    datasets=datasets,
                    degradation=degradation,
                    weights=weights,
                    vgg="none",
                    device="cpu",
                    precision=precision,
                )
            )["evaluation"]
            for precision in ("float32", "int8")
        )
        rows += [
            (dataset, LABELS[network], metrics["psnr_y"], rounded[dataset][network]["psnr_y"])
            for dataset, networks in exact.items()
            for network, metrics in networks.items()
            if network != "bicubic"
        ]
    return rows


def picture(height: int, width: int) -> Tensor:
    """Smooth noise: results of real weights then stay in the range of pictures."""
    noise = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=torch.manual_seed(0))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)


class EngineProcess:
    """An engine in a process of its own.

    Attributes:
        result: what it makes of the picture, (1, 3, 4h, 4w).
        loaded: bytes of memory with the engine loaded.
        first: seconds for the picture for the first time.
        peak: bytes of memory at most, when the picture has been enlarged once.
    """

    def __init__(self, name: str, weights: str, folder: Path, size: tuple[int, int]):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, weights, folder, size), daemon=True
        )
        others = {} if name.startswith("ours") else {"GOMP_SPINCOUNT": LIBGOMP_SPINS}
        with mock.patch.dict(os.environ, others):
            self._process.start()
        theirs.close()
        self.loaded, self.first, self.peak, result = self._receive()
        self.result = torch.from_numpy(np.load(result))
        result.unlink()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.join()

    def time(self) -> float:
        """Seconds for the picture."""
        time.sleep(PAUSE)
        self._pipe.send(None)
        return self._receive()

    def _receive(self):
        try:
            return self._pipe.recv()
        except EOFError:
            sys.exit(f"error: the process of {self.name} has died")


def _serve(pipe: Connection, name: str, weights: str, folder: Path, size: tuple[int, int]) -> None:
    """Enlarges one picture each time it is asked to, and tells the seconds."""
    keep_freed_memory()  # as app and terminal program do
    engine = ENGINES[name](weights, folder)
    engine(picture(16, 16))
    loaded = _peak()
    lr = picture(*size)
    start = time.perf_counter()
    result = engine(lr)
    first = time.perf_counter() - start
    peak, path = _peak(), folder / f"{name}.npy"
    np.save(path, result.numpy())
    pipe.send((loaded, first, peak, path))
    del result
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        engine(lr)
        pipe.send(time.perf_counter() - start)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many other programs each want a processor meanwhile."""
    running = []
    try:
        for _ in range(programs):
            running.append(multiprocessing.Process(target=_want_a_processor, daemon=True))
            running[-1].start()
        yield
    finally:
        for process in running:
            process.kill()
            process.join()


def _want_a_processor() -> None:
    while True:
        pass


def measure(
    names: list[str],
    weights: str,
    folder: Path,
    size: tuple[int, int],
    repeats: int,
    programs: int = 0,
) -> dict[str, dict[str, float]]:
    """Seconds and memory of each, and the largest difference from the first one's result.

    Raises:
        SystemExit: a result in float32 is not equal to the first one's.
    """
    with ExitStack() as stack:
        engines = [
            stack.enter_context(EngineProcess(name, weights, folder, size)) for name in names
        ]
        for engine in engines:
            if not engine.name.startswith("ours"):  # those have done it, in the time that counts
                back_project(engine.result, picture(*size))
        expected = engines[0].result
        errors = {e.name: (e.result - expected).abs().max().item() for e in engines}
        wrong = [n for n, error in errors.items() if n != "ours_int8" and not error < TOLERANCE]
        if wrong:
            sys.exit(f"error: {', '.join(wrong)} differ by more than rounding explains: {errors}")
        with busy(programs):
            rounds = [[engine.time() for engine in engines] for _ in range(repeats)]
        return {
            engine.name: {
                "seconds": statistics.median(seconds),
                "first_seconds": engine.first,
                "difference": errors[engine.name],
                "loaded_bytes": engine.loaded,
                "peak_bytes": engine.peak,
            }
            for engine, seconds in zip(engines, zip(*rounds, strict=True), strict=True)
        }


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes (Linux)."""
    # Not getrusage: that begins with the peak of the process which started this one.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def _is_there(name: str) -> bool:
    if name == "ours_int8":
        return int8.available()
    return name in ("paper", "ours") or importlib.util.find_spec(name) is not None


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, help="other programs that want a processor")
    parser.add_argument(
        "--datasets", type=Path, nargs="*", default=[], help="measure what int8 loses on these"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    names = [name for name in options.engines if _is_there(name)]
    left_out = [name for name in options.engines if name not in names]
    flops = operations(_generator(options.weights))
    peak, convolution = matmul_peak(), best_convolution()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", end="")
    print(f", peak {peak:.0f} GFLOP/s, one convolution {convolution:.0f}", end="")
    print(f"; not installed: {', '.join(left_out)}" if left_out else "")
    report = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(names, options.weights, folder)
        titles = ["size", "engine", "seconds", "ratio", "first", "GFLOP/s", "of peak", "peak MB"]
        titles += ["over loaded"]
        print(f"\n| {' | '.join(titles)} |\n| --- | --- |{' ---: |' * (len(titles) - 2)}")
        for height, width in options.sizes:
            size = height, width
            rows = measure(names, options.weights, folder, size, options.repeats, options.busy)
            first = next(iter(rows.values()))["seconds"]
            for name, row in rows.items():
                speed = flops * height * width / row["seconds"] / 1e9
                row |= {"gflops": speed, "ratio": first / row["seconds"]}
                cells = [f"{height}×{width}", name, f"{row['seconds']:.3f}", f"{row['ratio']:.2f}"]
                cells += [f"{row['first_seconds']:.3f}"]
                cells += [f"{speed:.0f}", f"{speed / peak:.0%}", f"{row['peak_bytes'] / 1e6:.0f}"]
                cells += [f"{(row['peak_bytes'] - row['loaded_bytes']) / 1e6:.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
            report[f"{height}x{width}"] = rows
    losses = lost_by_int8(options.weights, options.datasets) if options.datasets else []
    if losses:
        print(
            "\n| dataset | network | float32, dB | int8, dB | lost |\n| --- | --- |" + " ---: |" * 3
        )
    for dataset, network, exact, rounded in losses:
        print(f"| {dataset} | {network} | {exact:.2f} | {rounded:.2f} | {exact - rounded:.3f} |")
    if options.json:
        report = {
            "threads": torch.get_num_threads(),
            "busy": options.busy,
            "peak_gflops": peak,
            "convolution_gflops": convolution,
            "int8": [
                dict(zip(("dataset", "network", "float32_db", "int8_db"), row, strict=True))
                for row in losses
            ],
            "sizes": report,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
