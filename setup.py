"""Put configs.yml, which stands beside the package in the repository, into the built package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Build the package; outside editable mode, copy configs.yml into it."""

    def run(self) -> None:
        """Run the build step."""
        super().run()
        if not self.editable_mode:
            shutil.copy("configs.yml", Path(self.build_lib) / "image_classification")


setup(cmdclass={"build_py": BuildWithConfigs})
