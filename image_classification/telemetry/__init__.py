"""Power, memory and utilization of devices, sampled during a run."""
