"""What writes documents and pictures of this repository; no part of the library."""
