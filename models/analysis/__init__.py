"""What a network consists of: its operations, what each costs, and which part of the image each answer sees."""
