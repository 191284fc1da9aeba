"""Which files of a folder belong to the pictures that somebody put there: not hidden ones, nor those of systems."""

from pathlib import PurePath

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


def is_data(path: PurePath) -> bool:
    """Returns whether no part of a path, relative to the data set, is hidden or belongs to an operating system."""
    return not any(part.startswith(".") or part.lower() in SYSTEM for part in path.parts)
