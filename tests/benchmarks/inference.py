"""Speed and memory of enlarging: the network as in the paper, ours, and other runtimes.

    pip install -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.inference [--sizes 128 256 512] [--datasets Set5 Set14] [--json FILE]

All have the same weights, image and number of threads, and but for `int8` compute in float32. Runs
are interleaved and medians compared; before that the results are checked to be equal. A runtime
that is not installed is left out. GFLOP/s count the operations of the paper's graph, whatever a
runtime makes of it; the peak is what a matrix product reaches here, and one convolution of 64
channels to 64 is measured beside it. Memory is the peak of a process that runs this engine alone.
What int8 loses is measured on folders of high-res images, as `train.evaluate` does.
"""

import argparse
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from srgan import int8
from srgan.allocator import keep_freed_memory
from srgan.generator import Generator
from srgan.image import INPUT_SUFFIXES, crop_to_scale, open_image, shrink, to_tensor
from srgan.metrics import psnr_y
from srgan.upscaler import Upscaler
from srgan.weights import load_weights

#: Heights and widths in pixels that are measured by default.
SIZES = [(128, 128), (251, 183), (256, 256), (512, 512)]
#: Largest difference between two results that rounding explains.
TOLERANCE = 1e-4
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
    path = _export_onnx(weights, folder)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda lr: torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0])


def openvino(weights: str, folder: Path) -> Engine:
    import openvino

    model = openvino.Core().compile_model(
        _export_onnx(weights, folder),
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
    import pnnx

    path = folder / "generator.pt"
    pnnx.export(_generator(weights), str(path), torch.rand(1, 3, 64, 64), fp16=False)
    network = ncnn.Net()
    network.opt.num_threads = torch.get_num_threads()
    for precision in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{precision}", False)
    # Else its 9×9 convolution takes 20 GB for a picture of 256×256, and more time.
    network.opt.use_sgemm_convolution = False
    network.load_param(str(path.with_suffix(".ncnn.param")))
    network.load_model(str(path.with_suffix(".ncnn.bin")))

    def run(lr: Tensor) -> Tensor:
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(lr[0].numpy()))
        return torch.from_numpy(np.array(extractor.extract("out0")[1]))[None]

    return run


ENGINES = {f.__name__: f for f in (paper, ours, ours_int8, onnxruntime, openvino, ncnn)}


def _generator(weights: str) -> Generator:
    return load_weights(weights).srresnet.eval()


def _enlarge(weights: str, precision: str) -> Engine:
    upscaler = Upscaler(weights, "cpu", precision=precision)
    return torch.inference_mode()(partial(upscaler.enlarge, detail=0))


def _export_onnx(weights: str, folder: Path) -> str:
    path = folder / "generator.onnx"
    if not path.exists():
        torch.onnx.export(
            _generator(weights),
            (torch.rand(1, 3, 64, 64),),
            path,
            input_names=["lr"],
            dynamic_shapes=({2: torch.export.Dim("height"), 3: torch.export.Dim("width")},),
            verbose=False,
        )
    return str(path)


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


def lost_by_int8(weights: str, dataset: Path) -> tuple[float, float]:
    """Mean PSNR-Y in dB of float32 on a folder of high-res images, and what int8 loses of it."""
    engines = ours(weights, dataset), ours_int8(weights, dataset)
    total = [0.0, 0.0]
    files = [path for path in sorted(dataset.iterdir()) if path.suffix.lower() in INPUT_SUFFIXES]
    for path in files:
        hr = crop_to_scale(open_image(path, max_pixels=2**26))
        lr, original = to_tensor(shrink(hr)), to_tensor(hr)
        for i, engine in enumerate(engines):
            total[i] += psnr_y((engine(lr).clamp(0, 1) * 255).round() / 255, original)
    return total[0] / len(files), (total[0] - total[1]) / len(files)


def picture(height: int, width: int) -> Tensor:
    """Smooth noise: results of real weights then stay in the range of pictures."""
    noise = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=torch.manual_seed(0))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)


def time_engines(
    engines: dict[str, Engine], lr: Tensor, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of each, and the largest difference from the first one's result.

    Raises:
        SystemExit: a result in float32 is not equal to the first one's.
    """
    results = {name: engine(lr) for name, engine in engines.items()}  # and warms up
    expected = next(iter(results.values()))
    errors = {name: (result - expected).abs().max().item() for name, result in results.items()}
    exact = {name: error for name, error in errors.items() if name != "ours_int8"}
    wrong = [name for name, error in exact.items() if not error < TOLERANCE]
    if wrong:
        sys.exit(f"error: {', '.join(wrong)} differ by more than rounding explains: {errors}")
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(lr)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"seconds": statistics.median(values), "difference": errors[name]}
        for name, values in seconds.items()
    }


def peak_memory(name: str, weights: str, height: int, width: int) -> tuple[int, int]:
    """Bytes that a process of its own needs with the engine loaded, and at most when it runs."""
    command = [sys.executable, "-m", "tests.benchmarks.inference", "--weights", weights]
    command += ["--alone", name, "--sizes", f"{height}x{width}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loaded, peak = json.loads(output.splitlines()[-1])
    return loaded, peak


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
    parser.add_argument("--no-memory", action="store_true", help="don't measure memory")
    parser.add_argument(
        "--datasets", type=Path, nargs="*", default=[], help="measure what int8 loses on these"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", choices=list(ENGINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_freed_memory()  # as app and terminal program do

    with tempfile.TemporaryDirectory() as folder:
        if options.alone:
            engine = ENGINES[options.alone](options.weights, Path(folder))
            engine(picture(16, 16))
            loaded = _peak()
            engine(picture(*options.sizes[0]))
            print(json.dumps([loaded, _peak()]))
            return
        names = [name for name in options.engines if _is_there(name)]
        left_out = [name for name in options.engines if name not in names]
        engines = {name: ENGINES[name](options.weights, Path(folder)) for name in names}
        flops = operations(_generator(options.weights))
        peak, convolution = matmul_peak(), best_convolution()
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", end="")
        print(f", peak {peak:.0f} GFLOP/s, one convolution {convolution:.0f}", end="")
        print(f"; not installed: {', '.join(left_out)}" if left_out else "")
        titles = ["size", "engine", "seconds", "ratio", "GFLOP/s", "of peak"]
        titles += [] if options.no_memory else ["peak MB", "over loaded"]
        print(f"\n| {' | '.join(titles)} |\n| --- | --- |{' ---: |' * (len(titles) - 2)}")
        report = {}
        for height, width in options.sizes:
            rows = time_engines(engines, picture(height, width), options.repeats)
            first = next(iter(rows.values()))["seconds"]
            for name, row in rows.items():
                speed = flops * height * width / row["seconds"] / 1e9
                row |= {"gflops": speed, "ratio": first / row["seconds"]}
                cells = [f"{height}×{width}", name, f"{row['seconds']:.3f}", f"{row['ratio']:.2f}"]
                cells += [f"{speed:.0f}", f"{speed / peak:.0%}"]
                if not options.no_memory:
                    loaded, most = peak_memory(name, options.weights, height, width)
                    row |= {"loaded_bytes": loaded, "peak_bytes": most}
                    cells += [f"{most / 1e6:.0f}", f"{(most - loaded) / 1e6:.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
            report[f"{height}x{width}"] = rows
        losses = {path.name: lost_by_int8(options.weights, path) for path in options.datasets}
        for name, (psnr, loss) in losses.items():
            print(f"{name}: float32 {psnr:.2f} dB, int8 loses {loss:.3f} dB")
    if options.json:
        report = {
            "threads": torch.get_num_threads(),
            "peak_gflops": peak,
            "convolution_gflops": convolution,
            "int8_loss_db": {name: loss for name, (_, loss) in losses.items()},
            "sizes": report,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
