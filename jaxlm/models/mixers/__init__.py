"""What mixes the tokens of a text, a file for each: attention, and short convolutions."""
