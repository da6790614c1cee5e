"""Pictures of a fit, as matplotlib figures: save them with ``figure.savefig(path)``, or show them in a notebook."""

from daskgmm.plotting.convergence import plot_convergence
from daskgmm.plotting.images import plot_eigenvectors, plot_segmentation
from daskgmm.plotting.selection import plot_selection

__all__ = ["plot_convergence", "plot_eigenvectors", "plot_segmentation", "plot_selection"]
