"""`freehold synth`: from a name of the catalogue to a checkpoint with random weights, shown as it is written."""

from __future__ import annotations

from pathlib import Path

from freehold.errors import RequestError
from freehold.hub.catalog import get_entry, load_catalog
from freehold.terminal.console import Progress
from freehold.weights.synth import SHAPES, Container, Quant, write_checkpoint


def write_model(
    name: str,
    directory: Path,
    *,
    layers: int | None,
    seed: int,
    container: Container,
    quant: Quant,
    tokenizer: Path | None,
) -> Path:
    """As `write_checkpoint`, by name. Raises NotFoundError for an unknown name, RequestError for unknown shapes."""
    entry = get_entry(name)
    if not entry.shapes:
        known = ", ".join(entry.name for entry in load_catalog().values() if entry.shapes)
        raise RequestError(f"the shapes of {entry.name} are not known; those of these models are: {known}")
    with Progress(f"writing {entry.name}") as progress:
        return write_checkpoint(
            SHAPES[entry.name],
            directory,
            layers=layers,
            seed=seed,
            container=container,
            quant=quant,
            tokenizer=tokenizer,
            progress=progress,
        )
