"""Make the figure of README.md and the quickstart, and print the numbers of its caption.

./run_experiment.sh docs/figures/make.py

The code of README.md runs as it stands, in an empty folder.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

FIGURE = Path(__file__).with_name("quickstart.svg")
README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)

if __name__ == "__main__":
    from aafit.studies.figures import write_figure

    names: dict[str, Any] = {"__name__": "readme"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in BLOCK.findall(README.read_text(encoding="utf-8")):
            exec(compile(block, str(README), "exec"), names)
    FIGURE.unlink(missing_ok=True)
    write_figure(names["study"], FIGURE)
    scores = names["study"].scores
    for name in ("base", "initial", "tuned"):
        print(f"{name}: accuracy {getattr(scores, name).accuracy:.2%}")
    print(f"gain: {100 * scores.accuracy_gain.value:+.2f} ± {100 * scores.accuracy_gain.error:.2f} points")
