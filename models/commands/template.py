"""`convoy template`: makes a model that finds the object of one image in other images."""

from pathlib import Path
from typing import Annotated

import typer

from convoy.models.export import publish


def template(
    crop: Annotated[Path, typer.Argument(metavar="CROP", help="A picture of the object to find, and of nothing else.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the model and of what it finds.")],
    repository: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the model repository; created if it does not exist.")
    ] = Path("repository"),
) -> None:
    """Create a model that finds a picture inside others, regardless of brightness and contrast. Transparent parts count
    as white, in the searched images too."""
    publish.check_name(name)
    from convoy.models.data import picture

    picture.header(crop)

    from convoy.models.template import publish_template

    file, (height, width) = publish_template(crop, repository, name)
    print(f"file  {file}  (finds {width}x{height} pixels, version {file.parent.name})")
    print(f"next  convoy serve --repository {repository}")
    print(f"      convoy locate {name} PICTURE")
