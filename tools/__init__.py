"""Scripts that write this repository's documents and pictures; not part of the library."""
