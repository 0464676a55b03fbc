"""What `demo` was trained on and, in `adapter`, its adapter, with a confidence head that sees what it is told to.

usage: python runs/distill_start.py FOLDER states|draft
"""

import shutil
import sys
from pathlib import Path

from pack_shipped import write_start
from safetensors.torch import load_file, save_file

from pipo.convert.shipped import adapter_of

ADAPTER = "adapter_model.safetensors"
HEAD = "base_model.model.confidence_head."


def main(folder: str, inputs: str) -> None:
    write_start(folder, confidence_inputs=inputs)
    adapter = shutil.copytree(adapter_of("demo"), Path(folder) / "adapter")
    if inputs == "draft":  # its weights of the draft start at zero, as in `ConfidenceHead.start`
        tensors = load_file(adapter / ADAPTER)
        hidden = tensors[f"{HEAD}fc2.weight"].shape[1]
        tensors[f"{HEAD}draft.weight"] = tensors[f"{HEAD}fc1.weight"].new_zeros(hidden, hidden + 1)
        save_file(tensors, adapter / ADAPTER, metadata={"format": "pt"})


if __name__ == "__main__":
    main(*sys.argv[1:])
