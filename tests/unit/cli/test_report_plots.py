import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from image_classification.cli.report_plots import main
from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError, WorkspaceError

