"""Stands for NVIDIA Apex where nothing of it can run: its kernels and its amp need a GPU.

Written against the interface of Apex, in plain torch. What it shows is how this project calls Apex,
not that Apex is right; tests marked ``gpu`` use the real one.
"""
