"""The results of a run's steps: `<step>_results.json`, and all of them in `all_results.json`."""

import json
from pathlib import Path
from typing import Any

from softlaunch.files import read_json_object, write_text


def write_results(output_dir: Path, step: str, metrics: dict[str, Any]) -> None:
    """Write both files, each whole or as it was: a half written one would stop the next start."""
    file = output_dir / "all_results.json"
    for path, content in ((output_dir / f"{step}_results.json", metrics), (file, read_json_object(file) | metrics)):
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)  # scores may be no number
        write_text(path, text + "\n")
