"""How good a model is on images it has not seen."""
