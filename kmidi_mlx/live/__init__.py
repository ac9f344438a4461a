"""Live: two models that play and draw at sixty frames a second, steered while they do."""
