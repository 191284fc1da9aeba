"""What a run shows when it has ended, and runs side by side."""
