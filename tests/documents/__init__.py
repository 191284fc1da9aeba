"""README.md and the pages of docs/: what they tell a user to type is typed here."""
