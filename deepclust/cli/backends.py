"""`deepclust backends`: what runs here, and why not."""

from __future__ import annotations

import click
import torch

import deepclust
from deepclust.cli import _output

_EXAMPLES = """\b
Examples:
  deepclust backends
  deepclust backends --json
"""


@click.command("backends", short_help="Show what runs here, and why not.", epilog=_EXAMPLES)
@_output.json_option
def command(as_json: bool) -> None:
    """Show which backends run here, and why others do not."""
    threads = torch.get_num_threads()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = deepclust.backends()
    result = {"torch": torch.__version__, "threads": threads, "gpus": gpus, "backends": found}
    rows = {
        "deepclust": deepclust.__version__,
        "torch": f"{torch.__version__}, {threads} thread{'s' * (threads != 1)}",
        "GPU": ", ".join(gpus) or "torch finds none",
        **found,
    }
    lines = [f"{click.style(f'{name:<10}', bold=True)} {what}" for name, what in rows.items()]
    _output.conclude("backends", result, lines, as_json)
