"""Theme 1: classification of images and of pixels: fusion networks and edge detection."""
