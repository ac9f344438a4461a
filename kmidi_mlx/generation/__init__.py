"""Generation: drawing events from the model, one step of look-ahead, always valid music."""
