"""Where things are."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parent.parent.parent
SUPPORT = Path(__file__).parent
BFLOAT16 = ROOT / "tests" / "fixtures" / "tiny-llama"
"""The trained fixture as it is in the repository: a Llama of 12 blocks, in bfloat16."""


def _float32(folder: Path) -> Path:
    """The same checkpoint in float32, made once: bfloat16 takes three times as long where a CPU has no AVX-512."""
    weights = folder / "model.safetensors"
    made = ROOT / ".pytest_cache" / hashlib.sha256(weights.read_bytes()).hexdigest()[:16] / folder.name
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=made.parent))
        shutil.copytree(folder, new, dirs_exist_ok=True)
        save_file(
            {name: each.float() for name, each in load_file(weights).items()}, new / weights.name, {"format": "pt"}
        )
        config = json.loads((folder / "config.json").read_text())
        (new / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2))
        try:
            new.rename(made)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return made


TINY = _float32(BFLOAT16)
"""The fixture in float32, for all that is not about precisions."""
