"""From data to a trained network: settings, the loop with Lightning, what a run leaves in its folder."""
