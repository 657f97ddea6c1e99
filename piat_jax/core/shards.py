"""Sharded files, named NAME-00000-of-00002: checks that every part is present once."""

import re
from collections.abc import Sequence
from pathlib import Path

from piat_jax.core.checks import InputError
from piat_jax.core.checksums import crc32

# A digest may follow, which the hubs' libraries once appended.
SHARD = re.compile(r".+?-(\d+)-of-(\d+)(-\w+)?")


def check_shards(paths: Sequence[Path]) -> None:
    """Raise InputError unless files that are named as parts are complete, with each part once.

    Parts are numbered from 0 or, for weights, from 1. Byte-identical parts are refused too.

    >>> check_shards([Path("d/x-00000-of-00002.parquet"), Path("d/x-00000-of-00002-b42a.parquet")])
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: d has part 0 of 2 twice: x-00000-of-00002.parquet and \
x-00000-of-00002-b42a.parquet; keep one
    """
    matches = {path: match for path in paths if (match := SHARD.fullmatch(path.stem))}
    if not matches:
        return
    folder = paths[0].parent
    if others := [path.name for path in paths if path not in matches]:
        raise InputError(f"{folder} has {others[0]} next to {next(iter(matches)).name}; keep the parts of one set")
    totals = {int(match[2]) for match in matches.values()}
    if len(totals) > 1:
        raise InputError(f"{folder} has parts of {' and of '.join(map(str, sorted(totals)))}; keep those of one set")
    total, seen = totals.pop(), dict[int, str]()
    for path, match in matches.items():
        number = int(match[1])
        if number in seen:
            raise InputError(f"{folder} has part {number} of {total} twice: {seen[number]} and {path.name}; keep one")
        seen[number] = path.name
    begin = int(total in seen)
    if missing := sorted(set(range(begin, begin + total)) - seen.keys()):
        pattern = re.sub(r"-\d+-of-.*(?=\.)", "-*", paths[0].name)
        raise InputError(
            f"{folder} has {total - len(missing)} of the {total} files {pattern}; download the others "
            f"(number {', '.join(map(str, missing[:5]))}{', ...' if len(missing) > 5 else ''})"
        )
    if beyond := sorted(seen.keys() - set(range(begin, begin + total))):
        raise InputError(f"{folder} has part {beyond[0]} of {total}, which cannot exist; download the parts again")
    check_different(paths)


def check_different(paths: Sequence[Path]) -> None:
    """Raise InputError if two files have equal content; only files of equal size are read."""
    known: dict[tuple[int, int], str] = {}
    sizes = [path.stat().st_size for path in paths]
    for path, size in zip(paths, sizes):
        if sizes.count(size) > 1 and (other := known.setdefault((size, crc32(path)), path.name)) != path.name:
            raise InputError(f"{path} is a copy of {other}; download it again")
