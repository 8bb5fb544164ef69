"""A checkpoint of another project, rewritten without pickle and PyTorch or in the layout of diffusers.

    python -m experiments.convert checkpoint_8.pth ncsnpp
    python -m experiments.convert edm-cifar10-32x32-uncond-vp.pkl edm
    python -m experiments.convert ddpm-cifar10-32 ddpm

    DEST/model.safetensors    the tensors by their original names
    DEST/model.json           whose checkpoint it was, and its configuration

``scoresde.interop.converted(DEST)`` is the network with its SDE and score. Nothing that SOURCE holds is executed; the
network is made once before anything is written, so that what does not fit is told now.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from experiments.cli import commands
from experiments.cli.errors import InputError
from scoresde.checkpoint import folder as checkpoint
from scoresde.checkpoint.leaves import named_leaves
from scoresde.interop.files.opening import read_json, regular
from scoresde.interop.originals import read_original, write_converted
from scoresde.interop.writing.to_diffusers import to_diffusers


@dataclasses.dataclass(frozen=True)
class Flags:
    """Convert a checkpoint of score_sde, EDM or diffusers to safetensors and JSON."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A .pth of score_sde_pytorch, a checkpoint of score_sde in JAX, a .pkl of EDM or EDM2, a folder of diffusers, or
    one converted before."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder to write."""
    raw: bool = False
    """score_sde: take the trained weights instead of their average."""
    config: Path | None = None
    """JSON file with entries of the original's configuration that SOURCE does not tell, such as {"sde": "subvp"}."""
    diffusers: bool = False
    """Write a folder of diffusers instead, where the network has that layout."""


def convert(flags: Flags) -> tuple[str, list[Path]]:
    """Convert; returns a line about the network and the files.

    Raises:
        InputError: SOURCE, its configuration or DEST will not do; one line.
    """
    if _is_own(flags.source):
        asked = f"python -m experiments.export --checkpoint {flags.source} --out {flags.dest}"
        raise InputError(f"{flags.source} is a run of this project, which convert does not read; use {asked}")
    if flags.dest.resolve() == flags.source.resolve():
        raise InputError(f"{flags.dest} is the source itself; choose another folder to write")
    try:
        config = None if flags.config is None else read_json(regular(flags.config))
        original = read_original(flags.source, config, ema=not flags.raw)
        pretrained = original.pretrained()
        if flags.diffusers:
            to_diffusers(pretrained, flags.dest)
            files = sorted(path for path in flags.dest.rglob("*") if path.is_file())
        else:
            files = write_converted(original, flags.dest)
    except ValueError as error:
        raise InputError(str(error)) from None
    count = sum(leaf.size for _, leaf in named_leaves(pretrained.params))
    return f"{original.kind}: {count:,} parameters, {pretrained.sde!r}", files


def _is_own(source: Path) -> bool:
    """Whether a folder is that of a run of experiments.run, or its checkpoint."""
    inner = source / "checkpoint"
    try:
        return bool(checkpoint.read_metadata(inner if inner.is_dir() else source))
    except (OSError, ValueError):
        return False


def program(flags: Flags, console: Console) -> None:
    """Convert and name what was written."""
    line, files = convert(flags)
    for text in (line, *map(str, files)):
        console.print(text, highlight=False, markup=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "convert", program, cached=lambda flags: False)


if __name__ == "__main__":
    main()
