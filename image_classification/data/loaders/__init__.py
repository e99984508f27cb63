"""Data loaders: decode, augment and batch images, and copy them to the device."""
