"""``--emit``: scripts and manifests that start a run on a cluster."""
