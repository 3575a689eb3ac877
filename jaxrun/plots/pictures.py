"""Figures with a name and a caption, as files and as parts of a page."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from jaxrun.files.folders import replace_folder
from jaxrun.plots.plots import as_svg, save
from jaxrun.terminal.printable import visible


@dataclass(frozen=True)
class Picture:
    """A figure with the name of its file and what it shows."""

    name: str
    title: str
    caption: str
    figure: Figure

    @property
    def svg(self) -> Markup:
        """The picture of a page, as SVG."""
        return Markup(visible(as_svg(self.figure, self.title)))


def save_pictures(folder: Path, pictures: Iterable[Picture]) -> None:
    """Writes every picture as PNG; the folder is replaced as a whole.

    Raises:
        UserError: It cannot be written.
    """
    with replace_folder(folder) as temporary:
        for picture in pictures:
            save(picture.figure, temporary / f"{picture.name}.png")
