"""Weight files in every layout in circulation, read and written."""
