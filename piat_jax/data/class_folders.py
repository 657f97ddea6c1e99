"""Folders with one subfolder per class, and the image files in them."""

from pathlib import Path

from piat_jax.core.checks import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm"}


def class_folders(folder: Path) -> list[str]:
    """The names of the classes: the sorted names of the subfolders."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise InputError(f"{folder} has {len(names)} class folders; give one for each class, at least 2")
    return names


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
