"""Enlarges a photograph, or a folder of them, to four times the size.

python -m srgan photo.jpg large.png
python -m srgan photos/ enlarged/
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from srgan.errors import ImageError, SRGANError
from srgan.image import INPUT_SUFFIXES, OUTPUT_FORMATS, notices, open_image, save_image
from srgan.upscaler import Upscaler


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 when something failed, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        jobs = list(_jobs(options.input, options.output))
        upscaler = Upscaler(options.weights, options.device, tile=options.tile)
    except (SRGANError, OSError, ValueError) as exc:
        return _fail(str(exc))
    for notice in upscaler.notices:
        _say(f"note: {notice}")
    failed = 0
    try:
        for source, target in tqdm(jobs, unit="image", disable=None if len(jobs) > 1 else True):
            try:
                _enlarge(upscaler, source, target, options.detail)
            except (SRGANError, OSError, ValueError) as exc:
                failed += 1
                _say(f"error: {source}: {exc}")
    except KeyboardInterrupt:
        return _fail("stopped; images not yet finished were not written")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srgan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, help="an image, or a folder of images")
    parser.add_argument(
        "output", type=Path, help="the enlarged image; for a folder, the folder of enlarged PNGs"
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
        "--tile",
        type=int,
        help="side of a tile in input pixels; smaller takes less memory (default: chosen)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")
    return parser


def _jobs(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """(input file, output file) for everything there is to do.

    Raises:
        ImageError: input or output are not what they should be.
    """
    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise ImageError(
                f"{source} is a folder, so the output must be one too; {target} is a file."
            )
        files = sorted(
            path
            for path in source.iterdir()
            if path.is_file() and path.suffix.lower() in INPUT_SUFFIXES
        )
        if not files:
            raise ImageError(f"{source} holds no images ({', '.join(sorted(INPUT_SUFFIXES))}).")
        if target.resolve() == source.resolve():
            raise ImageError("Input and output are the same folder; choose another for the output.")
        target.mkdir(parents=True, exist_ok=True)
        stems = [path.stem for path in files]
        for path in files:
            # a.jpg and a.png must not both become a.png
            name = path.stem if stems.count(path.stem) == 1 else path.name
            yield path, target / f"{name}.png"
        return
    if not source.exists():
        raise ImageError(f"{source} does not exist.")
    if target.is_dir():
        target = target / f"{source.stem}.png"
    if target.suffix.lower() not in OUTPUT_FORMATS.values():
        raise ImageError(
            f"{target} has no known image suffix. Use one of {', '.join(OUTPUT_FORMATS.values())}."
        )
    if not target.parent.is_dir():
        raise ImageError(f"{target.parent} is not a folder; create it first.")
    if target.exists() and target.samefile(source):
        raise ImageError("Input and output are the same file; choose another for the output.")
    yield source, target


def _enlarge(upscaler: Upscaler, source: Path, target: Path, detail: float | None) -> None:
    image = open_image(source, max_pixels=upscaler.max_pixels)
    for notice in notices(image):
        _say(f"note: {source}: {notice}")
    # The bar appears only where there is a terminal, and only on work of more than a second.
    with tqdm(total=100, unit="%", desc=source.name, leave=False, delay=1, disable=None) as bar:
        result = upscaler.upscale(
            image, detail, progress=lambda fraction: bar.update(int(100 * fraction) - bar.n)
        )
    save_image(result, target)


def _say(message: str) -> None:
    tqdm.write(" ".join(message.split()), file=sys.stderr)


def _fail(message: str) -> int:
    _say(f"error: {message}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
