"""A figure that a notebook displays automatically. This module imports matplotlib, so import it only when needed."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A matplotlib figure that a notebook displays without pyplot or a backend.

    >>> Picture()._repr_png_()[1:4]
    b'PNG'
    """

    def _repr_png_(self) -> bytes:
        """The method that IPython calls."""
        written = io.BytesIO()
        self.savefig(written, format="png", dpi=144)
        return written.getvalue()
