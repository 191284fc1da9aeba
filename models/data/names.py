"""Names in folders of data: what systems leave there is passed over; accents count alike in whichever form."""

import unicodedata
from pathlib import Path

# In lower case: of network drives, archives, disks and desktops; what begins with a point is passed over anyway.
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
    """Whether no part of a path, seen from the data set, is hidden or a system's own."""
    return not any(part.startswith(".") or part.lower() in SYSTEM for part in path.parts)


def folders(root: Path) -> list[Path]:
    """The folders right in a folder, by name."""
    return sorted(path for path in root.iterdir() if is_data(Path(path.name)) and path.is_dir())


def one(name: str) -> str:
    """The form of a name that all ways to write its accents have in common: zip on a Mac takes letters apart."""
    return unicodedata.normalize("NFC", name)


def there(path: Path) -> Path:
    """The path itself, or, where nothing lies there, that of which the accents are written in another way."""
    if str(path).isascii() or path.exists():
        return path
    folder = there(path.parent)
    try:
        alike = sorted(each for each in folder.iterdir() if one(each.name) == one(path.name))
    except OSError:
        return path
    return alike[0] if alike else path
