"""Point correspondence: where points of one frame are found in the others, and how far from where they should be."""
