"""What `chat_template` in a config is: a known name, a file, or a template itself."""

from pathlib import Path

FOLDER = Path(__file__).parent / "templates"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja")))
"""The templates that are known by name."""


def template_file(setting: bool | str | None) -> str | None:
    """Returns the path that a setting names, if it names one."""
    return setting if isinstance(setting, str) and setting not in NAMES and not is_source(setting) else None


def is_source(given: str) -> bool:
    """Whether text is a template, not the name of one."""
    return "{{" in given or "{%" in given
