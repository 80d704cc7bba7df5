"""Text for language modelling: cut into blocks, streamed in a seeded order, masked on the fly. No Ray here."""
