"""File names in data folders: files of operating systems are skipped; accents compare equal in every Unicode form."""

import unicodedata
from pathlib import Path

# In lower case, from network drives, archives, disks and desktops. Names that begin with a dot are always skipped.
SYSTEM = {
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@syno",
    "@synoresource",
    "@tmp",
    "#recycle",
    "#snapshot",
    "~snapshot",
    "__macosx",
    "__pycache__",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "lost+found.bak",
    "found.000",
    "network trash folder",
    "temporary items",
    "icon\r",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
}


def is_data(path: Path) -> bool:
    """Returns whether no part of a path, relative to the data set, is hidden or belongs to an operating system."""
    return not any(part.startswith(".") or part.lower() in SYSTEM for part in path.parts)


def subfolders(root: Path) -> list[Path]:
    """Returns the direct subfolders of a folder, by name."""
    return sorted(path for path in root.iterdir() if is_data(Path(path.name)) and path.is_dir())


def nfc(name: str) -> str:
    """Returns the NFC form of a name; zip on a Mac writes decomposed accents."""
    return unicodedata.normalize("NFC", name)


def existing(path: Path) -> Path:
    """Returns the path, or, if it does not exist, an existing one whose accents are in another Unicode form."""
    if str(path).isascii() or path.exists():
        return path
    folder = existing(path.parent)
    try:
        alike = sorted(each for each in folder.iterdir() if nfc(each.name) == nfc(path.name))
    except OSError:
        return path
    return alike[0] if alike else path
