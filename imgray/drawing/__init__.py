"""Drawing: canvas, plots, and sheets of results and predictions."""
