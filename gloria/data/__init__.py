"""Images with reports: the built-in phantom radiographs, and readers of data on disk."""
