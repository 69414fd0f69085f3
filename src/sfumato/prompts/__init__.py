"""Words of prompts: where they stand, what they name, where things shall be."""
