"""Text for language modeling: cut into blocks, streamed in a seeded order, and masked when it is read."""
