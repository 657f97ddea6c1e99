"""Inspect a data set, or convert it to a cache that is verified and fast to open.

    piat-data inspect cifar10 --data_dir=~/data --sheet=sheet.png
    piat-data inspect ~/imagenet --image_size=224
    piat-data prepare ~/tiny-imagenet-200 --out=~/data/tiny_imagenet
    piat-data unpack generated.npz --out=mapped.npz

The command is followed by a name (cifar10, cifar100, svhn, tiny_imagenet, fashion_mnist, mnist, embedded, circles,
tfds:NAME) or by the path of a folder or file, whose format is detected. With --image_size it is a folder or a pattern
of encoded images of any size; `inspect` decodes --images of them and measures the speed. `prepare` can be stopped; the
same command resumes it. A cache is opened by its path, or by its data set's name if its folder has that name.
`unpack` writes a compressed .npz without compression, for dataset.extra: such a file is memory-mapped, not read.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError, check_choice
from piat_jax.core.files import expanded

if TYPE_CHECKING:
    from piat_jax.data import Dataset

COMMANDS = ("inspect", "prepare", "unpack")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    values = arguments.new_flags()
    flags.DEFINE_string("data_dir", "", "Folder with a named data set's files.", flag_values=values)
    flags.DEFINE_string("sheet", "", "Picture of examples that inspect writes.", flag_values=values)
    flags.DEFINE_string("out", "", "Folder that prepare writes, or file that unpack writes.", flag_values=values)
    flags.DEFINE_integer("image_size", 0, "For encoded images of any size: crop side in pixels.", flag_values=values)
    flags.DEFINE_integer("images", 512, "Number of them to decode in each split; 0 = all.", flag_values=values)
    given = arguments.parse(values, argv, __doc__, positional=True)
    if len(given) != 2:
        raise InputError("give a command and a data set, such as piat-data inspect cifar10; see --help")
    command, name = given
    check_choice("command", command, COMMANDS)

    from piat_jax.data import open_dataset
    from piat_jax.data.inspection import inspect, to_text
    from piat_jax.data.prepare import prepare
    from piat_jax.data.records import Decoding
    from piat_jax.data.records.inspection import encoded_to_text, inspect_encoded
    from piat_jax.data.unpack import unpack

    if command == "inspect":
        if values.out:
            raise InputError(f"out={values.out!r} is a flag of prepare and unpack; inspect takes --sheet")
        if values.image_size:
            if values.data_dir:
                raise InputError(
                    f"data_dir={values.data_dir!r} is for named data sets; {name!r} with image_size is a path"
                )
            dataset = open_dataset(name, decoding=Decoding(size=values.image_size))
            print(encoded_to_text(dataset, inspect_encoded(dataset, images=values.images)))
        else:
            dataset = open_dataset(name, data_dir=values.data_dir)
            print(to_text(dataset, inspect(dataset)))
        if values.sheet:
            write_sheet(values.sheet, dataset)
        return
    if values.image_size:
        raise InputError(f"image_size={values.image_size} is a flag of inspect; encoded images need no {command}")
    if values.sheet or not values.out:
        what = "FOLDER" if command == "prepare" else "FILE.npz"
        raise InputError(f"{command} needs --out={what}" if not values.out else "sheet is a flag of inspect")
    if command == "unpack":
        print(f"{unpack(name, values.out, on_block=show_progress)} holds the arrays of {name}, uncompressed")
        return
    dataset = open_dataset(name, data_dir=values.data_dir)
    folder = prepare(dataset, values.out, on_block=show_progress)
    print(f"{dataset.name}: {len(dataset.train.labels):,} + {len(dataset.test.labels):,} examples in {folder}")


def write_sheet(path: str, dataset: "Dataset") -> None:
    """Write the picture, or raise an InputError that says why it cannot be written."""
    from piat_jax.data.inspection import draw_sheet

    try:
        draw_sheet(dataset, expanded(path))
    except (OSError, ValueError) as error:
        raise InputError(f"sheet={path!r} cannot be written ({error}); give a file such as sheet.png") from error
    print(path)


def show_progress(done: int, total: int) -> None:
    """Show the progress in one line, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def entry() -> None:
    """The console entry point."""
    errors.leave(errors.run(main))


if __name__ == "__main__":
    entry()
