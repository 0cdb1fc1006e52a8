"""The conditions of one clip: where they are kept, and the memory that they need."""
