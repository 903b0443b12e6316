"""Theme 1: classification, of whole images by fused networks and of pixels: segments and edges."""
