"""A figure that a notebook shows by itself. It imports matplotlib, so it is imported where it is used."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure of matplotlib that needs neither pyplot nor a backend to be shown in a notebook.

    >>> Picture()._repr_png_()[1:4]
    b'PNG'
    """

    def _repr_png_(self) -> bytes:
        """What IPython asks for."""
        written = io.BytesIO()
        self.savefig(written, format="png", dpi=144)
        return written.getvalue()
