"""Enlarges a photograph, or a folder of them, to four times the size.

python -m srgan photo.jpg large.png
python -m srgan photos/ enlarged/
"""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import get_args

from PIL import Image
from tqdm import tqdm

from srgan.allocator import keep_freed_memory
from srgan.errors import ImageError, SRGANError
from srgan.image import INPUT_SUFFIXES, OUTPUT_FORMATS, notices, open_image, save_image
from srgan.upscaler import Model, Precision, Upscaler

OUTPUT_SUFFIXES = sorted({*OUTPUT_FORMATS.values(), *(f".{name}" for name in OUTPUT_FORMATS)})


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 when something failed. Wrong usage exits with 2."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    Image.MAX_IMAGE_PIXELS = None  # `open_image` has a limit of its own
    try:
        return _run(options)
    except (SRGANError, OSError, ValueError) as exc:
        _say(f"error: {exc}")
    except KeyboardInterrupt:
        _say("stopped; images not yet finished were not written")
    return 1


def _run(options: argparse.Namespace) -> int:
    jobs = _jobs(options.input, options.output)
    keep_freed_memory()
    upscaler = Upscaler(
        options.weights, options.device, tile=options.tile, precision=options.precision
    )
    upscaler.check(options.detail, options.model)
    for notice in upscaler.notices:
        _say(f"note: {notice}")
    _make_writable(jobs[0][1].parent)
    upscale = partial(
        upscaler.upscale,
        detail=options.detail,
        model=options.model,
        self_ensemble=options.self_ensemble,
    )
    return 1 if _enlarge_all(upscale, jobs, upscaler.max_pixels) else 0


def _enlarge_all(
    upscale: Callable[..., Image.Image], jobs: list[tuple[Path, Path]], max_pixels: int
) -> int:
    """Enlarges; while it does, the next image is read and the one before written.

    Args:
        upscale: from image and `progress` to the enlarged image.
        jobs: (input file, output file).
        max_pixels: largest image taken.

    Returns:
        How many failed.
    """
    failed = 0

    @contextmanager
    def telling(source: Path) -> Iterator[None]:
        nonlocal failed
        try:
            yield
        except (SRGANError, OSError, ValueError) as exc:
            failed += 1
            _say(f"error: {source}: {exc}")

    # disable=None: no bar where there is no terminal
    bar = tqdm(total=len(jobs), unit="image", disable=None if len(jobs) > 1 else True)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, bar:

        def read(job: tuple[Path, Path]) -> Future[Image.Image]:
            return reader.submit(open_image, job[0], max_pixels=max_pixels)

        def finish(source: Path, writing: Future[None]) -> None:
            with telling(source):
                writing.result()

        reading = read(jobs[0])
        written: tuple[Path, Future[None]] | None = None
        for (source, target), following in zip_longest(jobs, jobs[1:]):
            current, reading = reading, read(following) if following else None
            with telling(source):
                result = _enlarge(upscale, source, current.result())
                if written:  # one result waits at most
                    finish(*written)
                written = source, writer.submit(save_image, result, target)
            bar.update()
        if written:
            finish(*written)
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srgan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, help="an image, or a folder of images")
    parser.add_argument(
        "output", type=Path, help="the enlarged image, or a folder for enlarged PNGs"
    )
    parser.add_argument(
        "--weights",
        help="bundled, a weights folder, a .safetensors file, or user/repo[@revision] on the "
        "Hugging Face Hub (default: SRGAN_WEIGHTS, else bundled)",
    )
    parser.add_argument(
        "--detail",
        type=float,
        help="0 faithful … 1 textured (default: what the weights recommend)",
    )
    parser.add_argument(
        "--model",
        choices=get_args(Model),
        default="clean",
        help="clean for sharp originals; photo for JPEGs with blocks, noise or slight blur, where "
        "--detail has no effect (default: clean)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="the mean over eight orientations of the image: nearer to the original and smoother, "
        "in eight times the time",
    )
    parser.add_argument(
        "--tile",
        type=int,
        help="largest side of a tile in pixels of the input; smaller takes less "
        "memory and, below about 128, much more time (default: chosen)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of the computation (default: SRGAN_PRECISION, else auto, the fastest that keeps the "
        "pictures)",
    )
    return parser


def _jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(input file, output file) for everything there is to do; writes nothing.

    Raises:
        ImageError: input or output are not what they should be.
    """
    if not source.exists():
        raise ImageError(f"{source} does not exist.")
    if source.is_dir():
        return _folder_jobs(source, target)
    if target.is_dir():
        target = target / f"{source.stem}.png"
    if target.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ImageError(
            f"{target} has no known image suffix. Use one of {', '.join(OUTPUT_SUFFIXES)}."
        )
    if not target.parent.is_dir():
        raise ImageError(f"{target.parent} is not a folder; create it first.")
    if target.exists() and target.samefile(source):
        raise ImageError("Input and output are the same file; choose another for the output.")
    return [(source, target)]


def _folder_jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    if target.exists() and not target.is_dir():
        raise ImageError(
            f"{source} is a folder, so the output must be one too; {target} is a file."
        )
    if target.exists() and target.samefile(source):
        raise ImageError("Input and output are the same folder; choose another for the output.")
    files = sorted(
        path
        for path in source.iterdir()
        if path.is_file() and path.suffix.lower() in INPUT_SUFFIXES
    )
    if not files:
        raise ImageError(f"{source} holds no images ({', '.join(sorted(INPUT_SUFFIXES))}).")
    # a.jpg and a.png must not both become a.png, nor a.jpg.webp be a.jpg.png too, nor A.jpg and
    # a.jpg meet where case makes no difference
    names = Counter(name.lower() for path in files for name in (path.stem, path.name))
    return [
        (path, target / f"{path.name if names[path.stem.lower()] > 1 else path.stem}.png")
        for path in files
    ]


def _make_writable(folder: Path) -> None:
    """Makes the folder for the results, or finds out before any work that it can't be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ImageError(f"{folder} can't be made: {exc.strerror}.") from exc
    if not os.access(folder, os.W_OK):
        raise ImageError(f"{folder} is not writable; choose another output.")


def _enlarge(upscale: Callable[..., Image.Image], source: Path, image: Image.Image) -> Image.Image:
    for notice in notices(image):
        _say(f"note: {source}: {notice}")
    # delay: only on work of more than a second
    with tqdm(total=100, unit="%", desc=source.name, leave=False, delay=1, disable=None) as bar:
        return upscale(image, progress=lambda share: bar.update(int(100 * share) - bar.n))


def _say(message: str) -> None:
    tqdm.write(" ".join(message.split()), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
