"""The plug-in that napari's menu Plugins shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acq_isl.view.napari.window import LiveView

if TYPE_CHECKING:
    import napari


def live_panel(viewer: napari.Viewer) -> Any:
    """Panel that follows a run in this viewer: type its folder, press "Follow run".

    Parameters
    ----------
    viewer : napari.Viewer
        napari hands it in.

    Returns
    -------
    QWidget
    """
    return LiveView(viewer).panel.widget
