"""Commands for models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from app.recipe.students.hugging_face import is_model_file
from stillhouse import BadRequest, Client, documents
from stillhouse.cli import views
from stillhouse.cli.commands.common import Limit
from stillhouse.cli.commands.root import app
from stillhouse.cli.output import CommandOutput, command, err

ModelId = Annotated[str, typer.Argument(help="A model's id, model_…", show_default=False)]


@command(app)
def models(
    model: Annotated[str | None, typer.Argument(help="Show this one, model_…", show_default=False)] = None,
    limit: Limit = 20,
) -> CommandOutput:
    """List models, or show one."""
    client = Client()
    if model is not None:
        one = client.model(model)
        return CommandOutput(one, views.show(views.model(one)))
    found = list(client.models(limit=limit))
    return CommandOutput(found, views.show(views.models(found)))


@command(app)
def modules(model: ModelId) -> CommandOutput:
    """List the module paths of a model, as used by losses on features."""
    found = Client().modules(model)
    if not found.complete:
        err.print(views.module_source(found), style="dim", soft_wrap=True)
    return CommandOutput(found, views.show(Text("\n".join(found.paths))))


@command(app)
def extract(
    model: ModelId,
    row: Annotated[int, typer.Option(help="Number of the sub-network in search.json.", min=0, show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the new model.")] = None,
) -> CommandOutput:
    """Extract a sub-network of a student that was searched with the method supernet, as a model of its own."""
    found = Client().extract(model, row, name)
    return CommandOutput(found, lambda console: console.print(f"{found.id}  {found.name}"))


@command(app)
def register(
    weights: Annotated[
        Path, typer.Argument(help="Weights (safetensors, .pt), or a folder in the Hugging Face layout.", exists=True)
    ],
    config: Annotated[
        Path | None,
        typer.Argument(
            help="The network: architecture, input, classes; or an object with this as config, and name, "
            "checkpoint_key and key_map. A folder has its own.",
            dir_okay=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: that of the folder or file.")] = None,
    checkpoint_key: Annotated[
        str | None, typer.Option(help="Key of the weights in a .pt file, such as state_dict.")
    ] = None,
    key_map: Annotated[
        Path | None,
        typer.Option(
            help="Renames of the weights: a file in YAML or JSON (strip, drop, rename), or torchvision-resnet.",
            dir_okay=False,
        ),
    ] = None,
) -> CommandOutput:
    """Register your own weights as a model, for use as a teacher."""
    client = Client()
    description = _description(config, weights) if config else None
    called = name or (weights.resolve().name if weights.is_dir() else weights.stem)
    if weights.is_dir():
        if checkpoint_key or key_map:
            raise BadRequest("--checkpoint-key and --key-map are for a file of weights, not for a folder")
        paths = {path.relative_to(weights).as_posix(): path for path in sorted(weights.rglob("*"))}
        found = {name: path for name, path in paths.items() if is_model_file(name)}
        if not found:
            raise BadRequest(f"{weights} has no config.json and no weights (model.safetensors) of a model")
        model = client.register_folder(
            {name: client.upload(path).id for name, path in found.items()}, description, called
        )
    elif description is None:
        raise BadRequest(
            f"{weights} is only a file of weights: give a description of its network too, as in"
            f" `stillhouse register {weights} config.json`; docs/jobs.md shows one"
        )
    else:
        arguments = documents.registration(description, name=name, checkpoint_key=checkpoint_key, key_map=key_map)
        model = client.register_model(client.upload(weights).id, **{"name": called, **arguments})
    return CommandOutput(model, lambda console: console.print(f"{model.id}  {model.name}"))


def _description(config: Path, weights: Path) -> dict[str, Any]:
    """The description in a file. Raises `BadRequest` for a description of another library."""
    description = documents.read(config)
    if "model_type" in description and "architecture" not in description:
        where = f"{config} is a config.json of the Transformers library"
        if weights.is_dir():
            raise BadRequest(f"{where}, which is read with the folder {weights} anyway; omit it")
        raise BadRequest(
            f"{where}, which describes a whole folder: save the model with save_pretrained"
            " (model.safetensors beside config.json) and register the folder"
        )
    return description
