"""The generated parts of the model pages; `scripts/model_pages.py` writes them."""
