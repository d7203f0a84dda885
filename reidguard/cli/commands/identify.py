"""``reidguard identify``."""

from pathlib import Path
from typing import Annotated, TypedDict

from reidguard.cli.options import Flag, Options, command

EXAMPLES = """\
  reidguard identify osnet.pth
  reidguard identify person-reidentification-retail-0031.xml

The last line that it prints is the option that loads the file, as --model osnet_x0_25:osnet.pth.
"""
FILE = (
    "weights of torch (.pth, .pt, .t7, ...), safetensors, a model or an attack of this library, or "
    "a network in ONNX (.onnx), OpenVINO's IR (.xml), TorchScript (.pt) or of torch.export (.pt2)"
)


class Weights(TypedDict):
    """The file."""

    file: Annotated[Path, Flag(FILE, required=True, positional=True)]


def run(options: Options) -> None:
    """Print what the file is."""
    from reidguard.models import identify_weights

    print(identify_weights(options.file))


app = command("identify", run, {"options": (Weights,)}, examples=EXAMPLES)
