"""Tables and figures of runs' results, in the papers' form. Imports matplotlib only for drawing."""

from piat_jax.analysis.curves import robust_accuracy_figure
from piat_jax.analysis.runs import Checkpoint, RunResults, display_name, load_run
from piat_jax.analysis.table import Table
from piat_jax.analysis.tables import best_final_table, oscillation, stability_table, worst_class_table
from piat_jax.core.renamed import renamed

__all__ = [
    "Checkpoint",
    "RunResults",
    "Table",
    "best_final_table",
    "display_name",
    "load_run",
    "oscillation",
    "robust_accuracy_figure",
    "stability_table",
    "worst_class_table",
]

__getattr__ = renamed(__name__, {"Run": "RunResults"})
