"""Data backends behind one seam: which images, in what order, decoded and transformed how."""
