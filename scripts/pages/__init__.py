"""Generated parts of the model pages, for `scripts/model_pages.py`."""
