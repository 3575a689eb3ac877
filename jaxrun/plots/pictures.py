"""Figures with a name and a caption, as files and as parts of a page."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from jaxrun.files.folders import replace_folder
from jaxrun.plots import html
from jaxrun.plots.plots import as_svg, save


@dataclass(frozen=True)
class Picture:
    """A figure with the name of its file and what it shows."""

    name: str
    title: str
    caption: str
    figure: Figure


def save_pictures(folder: Path, pictures: Iterable[Picture]) -> None:
    """Writes every picture as PNG; the folder is replaced as a whole.

    Raises:
        UserError: It cannot be written.
    """
    with replace_folder(folder) as temporary:
        for picture in pictures:
            save(picture.figure, temporary / f"{picture.name}.png")


def shown(picture: Picture) -> html.Html:
    """Returns a picture as part of a page."""
    return html.figure(as_svg(picture.figure, picture.title), picture.caption)
