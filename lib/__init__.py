"""A thin library under the notebooks: one module a stage, and the nouns the stages share."""

import os
from pathlib import Path

# JupyterLab starts a kernel in the notebook's folder, batch in the repo's: relative paths mean the same in both.
if Path.cwd() == Path(__file__).parents[1] / "notebooks":
    os.chdir("..")
