import subprocess
import sys

MODULES = (
    "build_report",
    "run_folder",
    "sinks",
    "console",
    "results",
    "pictures.draw",
    "page",
)


def test_reporting_imports_neither_torch_nor_matplotlib():
    names = ", ".join(f"image_classification.reporting.{module}" for module in MODULES)
    code = f"import sys, {names}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not {"torch", "torchvision", "matplotlib", "numpy"} & loaded
