"""Tools that check, prepare, pack and generate data sets."""
