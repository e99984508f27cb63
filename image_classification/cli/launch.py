"""``launch.py``: list, explain, emit or run named configurations."""

from __future__ import annotations

from collections.abc import Sequence

from image_classification.cli.emit.render import render_emission
from image_classification.cli.listing import render_explanation, render_listing
from image_classification.cli.parse import parse
from image_classification.config.catalogue import load_catalogue
from image_classification.core.program import launch_words
from image_classification.core.terminal import show


def main(argv: Sequence[str]) -> int:
    """Run ``launch`` with ``argv``; return the exit code. Raises UserError."""
    request = parse(argv)
    if request.list_what is not None:
        catalogue = load_catalogue(request.config_file)
        show(render_listing(catalogue, request.list_what, request.json))
        return 0
    if request.explain:
        show(render_explanation(request.resolve(), request.json))
        return 0
    if request.emit is not None:
        config = request.resolve()
        show(render_emission(request.emit, config, argv, launch_words(), request.config_file))
        return 0
    # Imported on demand: --list, --explain and --emit answer at once, without torch.
    from image_classification.launch.run import drive

    return drive(request, launch_words(), argv)
