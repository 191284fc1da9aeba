"""Networks, their training, evaluation and export. Runs offline; imports torch."""

import os

# torch's threads then sleep while they wait for each other. By default they spin, which makes training several times
# slower if another process needs a core. OpenMP reads this when torch is imported; a user's own choice has priority.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
