from pathlib import Path

import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.shards import check_shards

NUMBERED = "train-{:05}-of-{:05}{}.parquet"


def written(folder, *names):
    """Files of different content."""
    for number, name in enumerate(names):
        (folder / name).write_bytes(bytes([number]) * 3)
    return sorted(folder / name for name in names)


@pytest.mark.parametrize("suffix", ["", "-b42a775f407cee45"])
@pytest.mark.parametrize("begin", [0, 1])
def test_whole_sets_pass(tmp_path, suffix, begin):
    check_shards(written(tmp_path, *(NUMBERED.format(n, 3, suffix) for n in range(begin, begin + 3))))
    check_shards([])
    check_shards([Path("train.parquet")])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002-ab12.parquet"], r"has 1 of the 2 files train-\*.parquet; download .*number 1\)"),
        (["train-00001-of-00003.parquet", "train-00002-of-00003.parquet"], r"2 of the 3 .*\(number 0\)"),
        (["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"], r"2 of the 3 .*\(number 2\)"),
        (["train-00000-of-00001-aa.parquet", "train-00000-of-00001-bb.parquet"], "has part 0 of 1 twice: .*; keep one"),
        (["train-00000-of-00002.parquet", "train-00000-of-00002-bb.parquet"], "has part 0 of 2 twice"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "has parts of 1 and of 2; keep those"),
        (["train-00000-of-00001.parquet", "train.parquet"], "has train.parquet next to train-00000-of-00001.parquet"),
        (["train-00000-of-00001.parquet", "train-00005-of-00001.parquet"], "has part 5 of 1, which cannot exist"),
    ],
)
def test_what_is_no_whole_set_is_refused(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        check_shards(written(tmp_path, *names))


def test_a_part_in_the_place_of_another_is_refused(tmp_path):
    paths = written(tmp_path, *(NUMBERED.format(n, 3, "") for n in range(3)))
    paths[2].write_bytes(paths[0].read_bytes())
    with pytest.raises(InputError, match=r"train-00002-of-00003.parquet is a copy of train-00000-of-00003.parquet"):
        check_shards(paths)
