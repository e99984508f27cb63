"""Replaces NVIDIA Apex on machines without a GPU, which its kernels and its amp need.

Has the interface of Apex, in plain torch. It tests how this project calls Apex, not Apex itself;
tests marked ``gpu`` use the real package.
"""
