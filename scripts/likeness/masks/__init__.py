"""Make masks of face, head and person on the photo's grid and on the crop's."""
